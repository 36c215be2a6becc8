"""The pages of a parquet file by their headers: how large each becomes, before any is decompressed.

    column chunk ── header, page ── header, page ── …      a header is a struct of Thrift's compact protocol

A page is the smallest piece that a reader can decompress, and one of a few kilobytes may become gigabytes. What the
file's footer says of sizes is not what a reader goes by, so it proves nothing.

Formats: Apache Parquet, parquet.thrift (PageHeader); Thrift compact protocol.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

from cluster.data.readers.chunks import Reason

WINDOW = 1 << 16  # bytes that are looked at for a header, and no header is longer than LONGEST
LONGEST = 16 << 20
LARGE = 64 << 20  # bytes of a page up to which nothing is asked
MOST = 1 << 30  # bytes of a page that is never read
DELTA_BYTE_ARRAY = 7  # of parquet.thrift: a value is the beginning of the one before it, and an end
RATIO = 500  # of a large page's bytes to its compressed ones; text comes to 3 to 10, the same line over and over to 300


class Page(NamedTuple):
    """What a page's header declares: bytes, compressed and not, how many values, and whether rows share bytes of it."""

    size: int
    compressed: int
    values: int
    shared: bool


class Unreadable(ValueError):
    """No page can be found where the file says that there is one."""


class Survey(NamedTuple):
    """Of the pages of a column: why they can't be read, and the most bytes that one row can take of another's."""

    problem: tuple[Reason, str] | None = None
    shared: int = 0


def survey(found: Iterator[Page], limit: int) -> Survey:
    """Whether pages take more memory than they are worth, by the first that does.

    Args:
        limit: bytes that a value may have.
    """
    shared = 0
    for page in found:
        if page.shared:
            shared = max(shared, page.size)
        if page.size <= max(LARGE, limit):
            continue
        shown = f"a page of {page.size / 1e6:,.0f} MB in {page.compressed / 1e6:,.3f} MB"
        if page.size > limit * max(page.values, 1):
            return Survey(("too_long", f"{shown} has {page.values} values, so one at least is too long"))
        if page.size > MOST or page.size > RATIO * page.compressed:
            return Survey(("unreadable", f"{shown} is not decompressed"))
    return Survey(None, shared)


def pages(stream: Any, column: Any) -> Iterator[Page]:
    """The pages of a column chunk.

    Args:
        column: its pyarrow.parquet.ColumnChunkMetaData.
    Raises:
        Unreadable: what is there is no header.
    """
    start, length = extent(column)
    end = start + length
    while start < end:
        header, size = _header(stream, start, end)
        try:
            compressed, uncompressed = header[3], header[2]
            detail = header.get(8) or header.get(5) or header.get(7) or {}
            shared = 7 in header or detail.get(4 if 8 in header else 2) == DELTA_BYTE_ARRAY  # 7: it is a dictionary
            page = Page(uncompressed, compressed, detail.get(1, 0), shared)
            wrong = compressed < 0 or uncompressed < 0 or page.values < 0
        except (KeyError, AttributeError, TypeError):
            wrong = True
        if wrong:
            raise Unreadable("a page without its sizes")
        yield page
        start += size + compressed


def extent(column: Any) -> tuple[int, int]:
    """(first byte, bytes) of a column chunk, as Arrow finds it."""
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    if start < 0 or column.total_compressed_size < 0:
        raise Unreadable("a column that begins before the file does")
    return start, column.total_compressed_size


def _header(stream: Any, start: int, end: int) -> tuple[dict[int, Any], int]:
    """(fields, bytes) of the header at `start`. It may hold statistics, and so the longest of values."""
    window = WINDOW
    while True:
        stream.seek(start)
        data = stream.read(min(window, end - start))
        reader = io.BytesIO(data)
        try:
            return _struct(reader, 0), reader.tell()
        except EOFError:
            if window >= LONGEST or len(data) < window:
                raise Unreadable("a page without a header") from None
            window = LONGEST


# -- https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md ---------------------------------

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
DEEPEST = 16


def _struct(reader: io.BytesIO, depth: int) -> dict[int, Any]:
    fields: dict[int, Any] = {}
    number = 0
    while (head := _byte(reader)) != 0:
        step, kind = head >> 4, head & 15
        number = number + step if step else _zigzag(reader)
        fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else _value(reader, kind, depth)
    return fields


def _value(reader: io.BytesIO, kind: int, depth: int) -> Any:
    if depth > DEEPEST:
        raise Unreadable("a header that is nested too deeply")
    if kind in (_BYTE, _TRUE, _FALSE):
        return _byte(reader)
    if kind in (_I16, _I32, _I64):
        return _zigzag(reader)
    if kind == _DOUBLE:
        return _skip(reader, 8)
    if kind == _BINARY:
        return _skip(reader, _varint(reader))
    if kind == _STRUCT:
        return _struct(reader, depth + 1)
    if kind in (_LIST, _SET):
        head = _byte(reader)
        count = head >> 4 if head >> 4 != 15 else _varint(reader)
        for _ in range(count):
            _value(reader, head & 15, depth + 1)
        return None
    raise Unreadable(f"a header with a field of kind {kind}")  # no page's header has a map


def _byte(reader: io.BytesIO) -> int:
    data = reader.read(1)
    if not data:
        raise EOFError
    return data[0]


def _skip(reader: io.BytesIO, size: int) -> None:
    if len(reader.read(size)) < size:
        raise EOFError


def _varint(reader: io.BytesIO) -> int:
    value = shift = 0
    while True:
        byte = _byte(reader)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
        shift += 7
        if shift > 63:
            raise Unreadable("a number of more than 64 bits")


def _zigzag(reader: io.BytesIO) -> int:
    value = _varint(reader)
    return (value >> 1) ^ -(value & 1)
