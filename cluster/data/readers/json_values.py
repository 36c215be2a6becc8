"""JSON values of a file, one after another: its lines, or the elements of an array, or objects over several lines.

    {"text": "a"}      [{"text": "a"},      {
    {"text": "b"}       {"text": "b"}]        "text": "a"
                                            }
    lines: 1, 2        values: 1, 2         value: 1

Which it is, the beginning says: `[` before a `{` or a text, or an object whose first line isn't its last. What comes
after an array is lines again. Memory is flat: a value longer than `limit` comes as its beginning, like a line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from cluster.data.readers.chunks import CHUNK, EXCERPT, Damaged, Line, Reason, lines

BOM = b"\xef\xbb\xbf"
_LONG = 4000  # digits: Python reads no longer integers
_IN_STRING, _OUTSIDE = re.compile(rb'["\\]'), re.compile(rb'["{}\[\],]')


def parse(data: bytes) -> Any:
    """The JSON value of UTF-8 text; an integer of thousands of digits becomes a float.

    Raises:
        UnicodeDecodeError, ValueError, RecursionError: it is none.
    """
    text = data.decode("utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python's limit on the digits of an integer
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < _LONG else float(digits))


def values(chunks: Iterable[bytes], limit: int) -> Iterator[Line]:
    """Each value's bytes, numbered from 1: lines by their place in the file, elements by theirs in the array.

    A value of more than `limit` bytes, or one in which the file ends, comes as its beginning with the problem.
    """
    stream, number = _Stream(chunks), 0
    while opening := stream.opening():
        for value in _inside(stream, limit, array=opening == b"["):
            number += 1
            yield value._replace(number=number)
    for line in lines(stream, limit):
        yield line._replace(number=number + line.number)


class _Stream:
    """Chunks that can be looked at before they are read, and put back."""

    def __init__(self, chunks: Iterable[bytes]):
        self._rest, self._ahead = iter(chunks), b""
        self._damage: Damaged | None = None

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        if self._damage:
            raise self._damage
        return next(self._rest)

    def put_back(self, data: bytes) -> None:
        self._ahead = data + self._ahead

    def opening(self) -> bytes | None:
        """What follows: b"[" for an array, b"{" for an object over several lines, None for lines, or nothing."""
        seen, first = b"", b""
        while (BOM.startswith(seen) or _undecided(first)) and len(seen) < CHUNK:
            try:
                seen += next(self)
            except StopIteration:
                break
            except Damaged as damage:
                self._damage = damage
                break
            first = seen.removeprefix(BOM).lstrip()
        self.put_back(seen)
        if first[:1] == b"[" and first[1:].lstrip()[:1] in (b"{", b'"'):
            return b"["
        return b"{" if first[:1] == b"{" and _goes_over(first) else None


def _undecided(first: bytes) -> bool:
    """Whether more is to be seen of a stream than its first bytes, white space before them left out."""
    return (
        not first or (first[:1] == b"[" and not first[1:].strip()) or (first[:1] == b"{" and _goes_over(first) is None)
    )


def _goes_over(first: bytes) -> bool | None:
    """Whether an object's first line isn't its last; None: that depends on what follows.

    A line that was torn after a comma is none: the next line of JSON lines begins with another object.
    """
    line, newline, rest = first.partition(b"\n")
    line, rest = line.rstrip(), rest.lstrip()
    if not newline:
        return None
    if line.endswith((b"{", b"[")):
        return True
    if not line.endswith((b",", b":")):
        return False
    return (rest[:1] not in (b"{", b"[") if line.endswith(b",") else True) if rest else None


class _Pieces:
    """A value's bytes as they come; of one that is too long only the beginning is kept."""

    def __init__(self, limit: int):
        self.limit, self.size, self.parts = limit, 0, list[bytes]()

    def add(self, piece: bytes) -> None:
        before, self.size = self.size, self.size + len(piece)
        if self.size <= self.limit:
            self.parts.append(piece)
        elif before <= self.limit:  # just went over the limit
            self.parts = [b"".join([*self.parts, piece[: 4 * EXCERPT]])[: 4 * EXCERPT]]

    def take(self) -> Line | None:
        """The value, and begin a new one; None for nothing but white space."""
        data, too_long = b"".join(self.parts), self.size > self.limit
        self.size, self.parts = 0, []
        return Line(0, data, "too_long" if too_long else None) if data.strip() else None

    def end(self, problem: Reason) -> Line:
        """What there is of a value that doesn't end."""
        return Line(0, b"".join(self.parts)[: 4 * EXCERPT], problem)


class _Scanner:
    """The stream cut at its brackets and commas, those in strings left out: (bytes before a mark, mark), …

    The end of a chunk is a cut too, with an empty mark.
    """

    def __init__(self, stream: _Stream):
        self.stream, self.chunk, self.at = stream, b"", 0

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        in_string = escaped = False
        for chunk in self.stream:
            self.chunk, start, self.at = chunk, 0, 0
            while self.at < len(chunk):
                if escaped:
                    self.at, escaped = self.at + 1, False
                    continue
                found = (_IN_STRING if in_string else _OUTSIDE).search(chunk, self.at)
                if not found:
                    break
                self.at, mark = found.end(), found[0]
                if in_string:
                    in_string, escaped = mark != b'"', mark == b"\\"
                elif mark == b'"':
                    in_string = True
                else:
                    yield chunk[start : found.start()], mark
                    start = self.at
            yield chunk[start:], b""

    def leave(self) -> None:
        """Put back what comes after the last mark."""
        self.stream.put_back(self.chunk[self.at :])


def _inside(stream: _Stream, limit: int, array: bool) -> Iterator[Line]:
    """The elements of the array that the stream begins with, or its object; what comes after stays in the stream."""
    pieces, scanner, depth = _Pieces(limit), _Scanner(stream), 0
    try:
        for piece, mark in scanner:
            if depth:  # before the first bracket there is only white space
                pieces.add(piece)
            if not mark:
                continue
            ends = depth == 1 and mark in ((b",", b"]") if array else (b"}",))
            if not (array and (ends or not depth)):
                pieces.add(mark)
            if not ends:
                depth = max(1, depth + (mark in b"[{") - (mark in b"]}"))
                continue
            if value := pieces.take():
                yield value
            if mark != b",":
                scanner.leave()
                return
        problem: Reason = "truncated"
    except Damaged as damage:
        problem = damage.reason
    yield pieces.end(problem)
