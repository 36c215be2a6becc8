"""A file's bytes in chunks, decompressed, and its lines: in flat memory, whatever the length of the file or of a line.

Formats: gzip RFC 1952 (several members), zstd RFC 8878 (several frames).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Literal, NamedTuple

CHUNK = 1 << 20
EXCERPT = 200  # characters of a quarantined record that are shown

Reason = Literal[
    "invalid_utf8",  # bytes that are no UTF-8, or JSON escapes that are half a surrogate pair
    "too_long",  # more bytes than the limit
    "empty",  # nothing but white space
    "truncated",  # the compressed file ends early: what stood after its last whole record
    "corrupt",  # compressed bytes that don't decode
    "invalid_json",  # a line that is no JSON
    "not_object",  # JSON, but no object with fields: a list, a text, a number
    "missing_text",  # no such text field or column, or null
    "not_text",  # a text field of another type
    "unreadable",  # a parquet file, or a part of it, that can't be read
]


class Damaged(Exception):
    """The compressed stream breaks off or doesn't decode; all bytes before the break were given out."""

    def __init__(self, reason: Reason):
        super().__init__(reason)
        self.reason: Reason = reason


class Line(NamedTuple):
    number: int  # 1-based
    data: bytes  # without its newline; only the beginning if `problem`
    problem: Reason | None = None


class Chunks:
    """The decompressed bytes of a file in chunks of about 1 MB; `consumed` counts the compressed bytes read.

    Raises (while iterating):
        Damaged: after the last chunk that could be decoded.
    """

    def __init__(self, stream: BinaryIO, compression: str | None = None):
        self.consumed = 0
        self._stream = stream
        self._compression = compression

    def __iter__(self) -> Iterator[bytes]:
        if self._compression == "gzip":
            return self._gzip()
        if self._compression == "zstd":
            return self._zstd()
        return self._raw(CHUNK)

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.consumed += len(data)
        return data

    def _raw(self, size: int) -> Iterator[bytes]:
        while data := self._read(size):
            yield data

    def _gzip(self) -> Iterator[bytes]:
        decoder, begun = zlib.decompressobj(wbits=31), False
        for data in self._raw(1 << 17):
            while data or begun:
                if not begun:
                    data = data.lstrip(b"\0")  # padding between and after members is allowed
                    if not data:
                        break
                begun = True
                try:
                    out = decoder.decompress(data, CHUNK)
                except zlib.error:
                    raise Damaged("corrupt") from None
                if out:
                    yield out
                if decoder.eof:
                    data = decoder.unused_data
                    decoder, begun = zlib.decompressobj(wbits=31), False
                else:
                    data = decoder.unconsumed_tail
                    if not data and len(out) < CHUNK:  # at its limit, the decoder may hold more
                        break
        if begun:
            raise Damaged("truncated")

    def _zstd(self) -> Iterator[bytes]:
        import zstandard

        decoder, begun = zstandard.ZstdDecompressor().decompressobj(), False
        # zstandard gives out all that an input holds, however much: the input is cut so that about a chunk
        # comes out, by the ratio seen last. 16 KB of input hold at most 512 MB, the first 4 KB 128 MB.
        feed = 1 << 12
        while data := self._read(feed):
            while data:
                begun = True
                try:
                    out = decoder.decompress(data)
                except zstandard.ZstdError:
                    raise Damaged("corrupt") from None
                for start in range(0, len(out), CHUNK):
                    yield out[start : start + CHUNK]
                feed = min(max(len(data) * CHUNK // max(len(out), 1), 256), 1 << 14)
                if decoder.eof:
                    data = decoder.unused_data
                    decoder, begun = zstandard.ZstdDecompressor().decompressobj(), False
                else:
                    data = b""
        if begun:
            raise Damaged("truncated")


def lines(chunks: Iterable[bytes], limit: int, newline: bytes = b"\n") -> Iterator[Line]:
    """The lines of a chunked file; one longer than `limit` bytes comes as its beginning with `too_long`.

    If the chunks end in `Damaged`, so does the last, unfinished line.
    """
    number, pending, size, problem = 1, [], 0, None

    def line(extra: bytes = b"") -> Line:
        data = b"".join([*pending, extra])
        too_long = size + len(extra) > limit
        return Line(number, data[: 4 * EXCERPT] if too_long else data, "too_long" if too_long else None)

    try:
        for chunk in chunks:
            *whole, last = chunk.split(newline)
            for part in whole:
                yield line(part)
                number, pending, size = number + 1, [], 0
            size += len(last)
            if size <= limit:
                pending.append(last)
            elif pending or size == len(last):  # just went over the limit: keep its beginning only
                pending = [b"".join(pending)[: 4 * EXCERPT] or last[: 4 * EXCERPT]]
    except Damaged as damage:
        problem = damage.reason
    if problem:
        data = line().data
        yield Line(number, data[: 4 * EXCERPT], problem)
    elif size:
        yield line()


def excerpt(data: bytes | str) -> str:
    text = data[: 4 * EXCERPT].decode("utf-8", "backslashreplace") if isinstance(data, bytes) else data
    return text[:EXCERPT].encode("utf-8", "backslashreplace").decode()
