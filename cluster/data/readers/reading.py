"""Robust streaming readers: bytes of a jsonl, parquet or text file in, records out; bad data never raises.

    file → decompress (gzip, zstd) → lines → Record(text) | Record(reason)

A record that can't become a document carries the reason why, and the rest of the file goes through. Memory stays flat:
a chunk of ~1 MB and at most one record of `limit` bytes are held, whatever the length of the file or of a line. Errors
of the machine (a disk, a network) are raised as they are: they are not the data's fault.

Formats: gzip RFC 1952 (several members), zstd RFC 8878 (several frames), JSON Lines, Apache Parquet.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Literal, NamedTuple

CHUNK = 1 << 20
EXCERPT = 200  # characters of a quarantined record that are shown

Reason = Literal[
    "invalid_utf8",  # bytes that are no UTF-8, or JSON escapes that are half a surrogate pair
    "too_long",  # more bytes than the limit
    "empty",  # nothing but white space
    "truncated",  # the compressed file ends early: what stood after its last whole record
    "corrupt",  # compressed bytes that don't decode
    "invalid_json",  # a line that is no JSON object
    "missing_text",  # no such text field or column, or null
    "not_text",  # a text field of another type
    "unreadable",  # a parquet file, or a part of it, that can't be read
]
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


class Damaged(Exception):
    """The compressed stream breaks off or doesn't decode; all bytes before the break were given out."""

    def __init__(self, reason: Reason):
        super().__init__(reason)
        self.reason: Reason = reason


class Line(NamedTuple):
    number: int  # 1-based
    data: bytes  # without its newline; only the beginning if `problem`
    problem: Reason | None = None


def kind_of(name: str) -> tuple[Format | None, str | None]:
    """(format, compression) by a file's name: "a.jsonl.gz" → ("jsonl", "gzip"); (None, …) if unknown."""
    stem, dot, suffix = name.rpartition(".")
    compression = COMPRESSIONS.get((dot + suffix).lower())
    if compression:
        stem, dot, suffix = stem.rpartition(".")
    return (FORMATS.get((dot + suffix).lower()) if stem else None), compression


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


def _document(position: int, text: str, limit: int, key: str | None = None) -> Record:
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
    """One record a line; blank lines are passed over, as JSON Lines readers do."""
    for number, data, problem in lines(chunks, limit):
        if number == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        if problem:
            yield Record(number, None, problem, excerpt(data))
            continue
        if not data or data.isspace():
            continue
        try:
            value = json.loads(data.decode("utf-8"))
        except UnicodeDecodeError:
            yield Record(number, None, "invalid_utf8", excerpt(data))
            continue
        except (ValueError, RecursionError):
            yield Record(number, None, "invalid_json", excerpt(data))
            continue
        if not isinstance(value, dict):
            yield Record(number, None, "invalid_json", excerpt(data))
            continue
        text, key = value.get(text_field), value.get(id_field) if id_field else None
        key = str(key) if isinstance(key, str | int) else None
        if text is None:
            yield Record(number, None, "missing_text", excerpt(data), key)
        elif not isinstance(text, str):
            yield Record(number, None, "not_text", excerpt(data), key)
        else:
            yield _document(number, text, limit, key)


def read_text(chunks: Iterable[bytes], split: Split, limit: int) -> Iterator[Record]:
    """The whole file as one record, or one for each line or each block between blank lines."""
    units = {"file": _whole, "lines": lines, "blank_lines": _blocks}[split](chunks, limit)
    for number, data, problem in units:
        if number <= 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
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
        yield _document(position, text.rstrip("\r\n") if split == "lines" else text, limit)


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


def read_parquet(
    stream: BinaryIO, compression: str | None, text_field: str, id_field: str | None, limit: int
) -> Iterator[Record]:
    """One record a row. A compressed file, or one that can't seek, is first copied to a temporary file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if compression or not stream.seekable():
        with tempfile.TemporaryFile() as copy:
            try:
                if compression:
                    for chunk in Chunks(stream, compression):
                        copy.write(chunk)
                else:
                    shutil.copyfileobj(stream, copy, CHUNK)
            except Damaged as damage:
                yield Record(0, None, damage.reason)
                return
            copy.seek(0)
            yield from read_parquet(copy, None, text_field, id_field, limit)
            return
    row, error = 0, (pa.ArrowException, OSError)
    try:
        file = pq.ParquetFile(stream)
    except error as problem:
        yield Record(0, None, "unreadable", excerpt(str(problem)))
        return
    names = file.schema_arrow.names
    if text_field not in names:
        yield Record(0, None, "missing_text", excerpt(f"columns: {', '.join(names)}"))
        return
    columns = [text_field] + ([id_field] if id_field in names and id_field else [])
    for group in range(file.num_row_groups):
        info = file.metadata.row_group(group)
        batch_size = max(1, min(4096, (8 << 20) * info.num_rows // max(info.total_byte_size, 1)))
        start = row
        try:
            batches = file.iter_batches(batch_size, row_groups=[group], columns=columns, use_threads=False)
            for batch in batches:
                keys = batch.column(1).to_pylist() if len(columns) > 1 else [None] * batch.num_rows
                for value, key in zip(_values(batch.column(0)), keys, strict=True):
                    row += 1
                    yield _value(row, value, None if key is None else str(key), limit)
        except error as problem:
            row += 1
            yield Record(row, None, "unreadable", excerpt(f"row group {group}: {problem}"))
        row = start + info.num_rows


def _values(column: Any) -> list[Any]:
    """Python values; text that is no UTF-8 comes as bytes, which parquet readers don't check."""
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    text = types.is_string(column.type) or types.is_large_string(column.type)
    if text:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            column = column.view(pa.binary() if types.is_string(column.type) else pa.large_binary())
    return column.to_pylist()


def _value(row: int, value: Any, key: str | None, limit: int) -> Record:
    if value is None:
        return Record(row, None, "missing_text", "", key)
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            return Record(row, None, "invalid_utf8", excerpt(value), key)
    if not isinstance(value, str):
        return Record(row, None, "not_text", excerpt(str(value)), key)
    return _document(row, value, limit, key)
