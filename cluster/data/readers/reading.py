"""Robust streaming readers: bytes of a jsonl or text file in, records out; bad data never raises.

    file → chunks.py: decompress (gzip, zstd) → lines, or json_values.py → Record(text) | Record(reason)

A record that can't become a document carries the reason why, and the rest of the file goes through. Memory stays flat:
a chunk of ~1 MB and at most one record of `limit` bytes are held, whatever the length of the file or of a line. Errors
of the machine (a disk, a network) are raised as they are: they are not the data's fault.

Formats: JSON Lines, JSON (RFC 8259); Apache Parquet has a file of its own, parquet.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from cluster.data.readers.chunks import EXCERPT, Damaged, Line, Reason, excerpt, lines
from cluster.data.readers.json_values import BOM, parse, values

Format = Literal["jsonl", "parquet", "txt"]
Split = Literal["file", "blank_lines", "lines"]

FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "txt",
    ".text": "txt",
    ".md": "txt",
    ".rst": "txt",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}


class Record(NamedTuple):
    """One record of a file: a document's text, or the reason why it is none."""

    position: int  # 1-based line, block or row; 0 for the whole file
    text: str | None
    reason: Reason | None = None
    excerpt: str = ""
    key: str | None = None  # the value of the id field


def kind_of(name: str) -> tuple[Format | None, str | None]:
    """(format, compression) by a file's name: "a.jsonl.gz" → ("jsonl", "gzip"); (None, …) if unknown."""
    stem, dot, suffix = name.rpartition(".")
    compression = COMPRESSIONS.get((dot + suffix).lower())
    if compression:
        stem, dot, suffix = stem.rpartition(".")
    return (FORMATS.get((dot + suffix).lower()) if stem else None), compression


def document(position: int, text: str, limit: int, key: str | None = None) -> Record:
    """A record of text, unless the text is empty, too long, or no Unicode text."""
    if not text or text.isspace():
        return Record(position, None, "empty", "", key)
    if len(text) * 4 > limit or not text.isascii():
        try:
            size = len(text.encode())
        except UnicodeEncodeError:  # a lone surrogate, by a JSON escape such as "\ud83d"
            return Record(position, None, "invalid_utf8", excerpt(text), key)
        if size > limit:
            return Record(position, None, "too_long", excerpt(text), key)
    return Record(position, text, key=key)


def read_jsonl(chunks: Iterable[bytes], text_field: str, id_field: str | None, limit: int) -> Iterator[Record]:
    """One record a line, or an element of an array; blank lines are passed over, as JSON Lines readers do."""
    for number, data, problem in values(chunks, limit):
        if number == 1:
            data = data.removeprefix(BOM)
        if problem:
            yield Record(number, None, problem, excerpt(data))
            continue
        if not data or data.isspace():
            continue
        try:
            value = parse(data)
        except UnicodeDecodeError:
            yield Record(number, None, "invalid_utf8", excerpt(data))
            continue
        except (ValueError, RecursionError):
            yield Record(number, None, "invalid_json", excerpt(data))
            continue
        if not isinstance(value, dict):
            yield Record(number, None, "not_object", excerpt(data))
            continue
        text, key = value.get(text_field), value.get(id_field) if id_field else None
        key = str(key) if isinstance(key, str | int) else None
        if text is None:
            yield Record(number, None, "missing_text", excerpt(data), key)
        elif not isinstance(text, str):
            yield Record(number, None, "not_text", excerpt(data), key)
        else:
            yield document(number, text, limit, key)


def read_text(chunks: Iterable[bytes], split: Split, limit: int) -> Iterator[Record]:
    """The whole file as one record, or one for each line or each block between blank lines."""
    units = {"file": _whole, "lines": lines, "blank_lines": _blocks}[split](chunks, limit)
    for number, data, problem in units:
        if number <= 1:
            data = data.removeprefix(BOM)
        position = 0 if split == "file" else number
        if problem:
            yield Record(position, None, problem, excerpt(data))
            continue
        if split != "file" and (not data or data.isspace()):
            continue
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            yield Record(position, None, "invalid_utf8", excerpt(data))
            continue
        yield document(position, text.rstrip("\r\n") if split == "lines" else text, limit)


def _whole(chunks: Iterable[bytes], limit: int) -> Iterator[Line]:
    parts, size = [], 0
    try:
        for chunk in chunks:
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                yield Line(0, parts[0][: 4 * EXCERPT], "too_long")
                return
    except Damaged as damage:
        yield Line(0, b"".join(parts)[: 4 * EXCERPT], damage.reason)
        return
    yield Line(0, b"".join(parts))


def _blocks(chunks: Iterable[bytes], limit: int) -> Iterator[Line]:
    """Blocks of lines between blank lines, each numbered by its first line; `limit` holds for a block."""
    first, parts, size, problem = 0, [], 0, None
    for line in lines(chunks, limit):
        if not line.problem and (not line.data or line.data.isspace()):
            if parts:
                yield Line(first, b"\n".join(parts), problem)
            first, parts, size, problem = 0, [], 0, None
            continue
        first = first or line.number
        size += len(line.data) + 1
        problem = problem or line.problem or ("too_long" if size > limit else None)
        if problem:
            parts = [b"\n".join([*parts, line.data])[: 4 * EXCERPT]]
        else:
            parts.append(line.data)
    if parts:
        yield Line(first, b"\n".join(parts), problem)
