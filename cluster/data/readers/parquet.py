"""Parquet files as records: no value longer than the limit is in memory, whatever the file says of its sizes.

    footer ─▶ row group ─▶ headers of its pages: too large? ─ yes ─▶ one bad record for the group
                              └─ no ─▶ batches of rows, of a few megabytes of text each ─▶ Record

A dictionary of one long text may stand for a billion rows: the longer it is, the fewer rows are read at a time.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from cluster.data.readers.chunks import CHUNK, Chunks, Damaged, excerpt
from cluster.data.readers.parquet_pages import MOST, Survey, Unreadable, extent, pages, survey
from cluster.data.readers.reading import Record, document

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_BYTES, BATCH_ROWS = 8 << 20, 4096
SHARED_BYTES = 64 << 20  # of a batch whose every row is as long as its dictionary
# Of a file of more than a million rows, or a gigabyte of text: more would be nulls, or one text, over and over.
ROWS_PER_BYTE, TEXT_PER_BYTE = 256, 4096


def read_parquet(
    stream: BinaryIO, compression: str | None, text_field: str, id_field: str | None, limit: int
) -> Iterator[Record]:
    """One record a row. A compressed file, or one that can't seek, is first copied to a temporary file."""
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
            yield from _read(copy, text_field, id_field, limit)
            return
    yield from _read(stream, text_field, id_field, limit)


def _read(stream: BinaryIO, text_field: str, id_field: str | None, limit: int) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    window = Window(stream)
    row, text, error = 0, 0, (pa.ArrowException, OSError, UnicodeDecodeError, Unreadable)
    try:
        file = pq.ParquetFile(window)
        names = file.schema_arrow.names
        wanted = [text_field, id_field] if id_field in names and id_field not in (None, text_field) else [text_field]
        size = stream.seek(0, io.SEEK_END)
        if file.metadata.num_rows > max(1 << 20, ROWS_PER_BYTE * size):
            raise Unreadable(f"it claims to have {file.metadata.num_rows:,} rows in {size:,} bytes")
        flat = [n for n in wanted if n in names and _is_flat(file.schema_arrow.field(names.index(n)).type)]
    except error as problem:  # a column's name may be no UTF-8
        yield Record(0, None, "unreadable", excerpt(str(problem)))
        return
    if text_field not in names:
        yield Record(0, None, "missing_text", excerpt(f"columns: {', '.join(names)}"))
        return
    key_field = id_field if id_field in flat else None
    for group in range(file.num_row_groups):
        start, info = row, file.metadata.row_group(group)
        try:
            if text_field not in flat:
                kind = excerpt(str(file.schema_arrow.field(names.index(text_field)).type))
                yield from (Record(start + n, None, "not_text", kind) for n in range(1, info.num_rows + 1))
            else:
                chunks = [c for c in map(info.column, range(info.num_columns)) if c.path_in_schema in flat]
                surveys = [_survey(window, chunk, limit) for chunk in chunks]
                if problem := next((s.problem for s in surveys if s.problem), None):
                    row += 1
                    words = f"row group {group}, of whose {info.num_rows:,} rows none is read: {problem[1]}"
                    yield Record(row, None, problem[0], excerpt(words))
                else:
                    shared = max((s.shared for s in surveys), default=0)
                    most = max(1, min(BATCH_ROWS, SHARED_BYTES // max(shared, 1)))
                    for record in _rows(file, group, flat, key_field, most, row, limit):
                        row = record.position
                        text += len(record.text or "")
                        if text > max(MOST, TEXT_PER_BYTE * size):
                            raise Unreadable(f"{text:,} characters in {size:,} bytes; no more are read")
                        yield record
        except error as problem:
            row += 1
            yield Record(row, None, "unreadable", excerpt(f"row group {group}: {problem}"))
        row = start + info.num_rows


class Window(io.RawIOBase):
    """A stream with a column chunk of it in memory, where it is no file: a header costs no request of its own."""

    def __init__(self, stream: BinaryIO):
        self._stream, self._start, self._data, self._position = stream, 0, b"", 0
        try:
            stream.fileno()
            self._local = True
        except (OSError, AttributeError):
            self._local = False

    def hold(self, start: int, length: int) -> None:
        """Have these bytes, in place of those that were held."""
        if not self._local:
            self._stream.seek(start)
            self._start, self._data = start, self._stream.read(length)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            self._position = self._stream.seek(offset, whence)
        else:
            self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def read(self, size: int = -1) -> bytes:
        begin = self._position - self._start
        if size >= 0 and begin >= 0 and begin + size <= len(self._data):
            data = self._data[begin : begin + size]
        else:
            self._stream.seek(self._position)
            data = self._stream.read(size)
        self._position += len(data)
        return data


def _survey(window: Window, chunk: Any, limit: int) -> Survey:
    window.hold(*extent(chunk))
    return survey(pages(window, chunk), limit)


def _rows(
    file: Any, group: int, columns: list[str], key_field: str | None, most: int, row: int, limit: int
) -> Iterator[Record]:
    """The records of a row group, `most` at a time; `row` is the number of the one before. `columns[0]` is the text."""
    info = file.metadata.row_group(group)
    batch_rows = max(1, min(most, BATCH_BYTES * info.num_rows // max(info.total_byte_size, 1)))
    for batch in file.iter_batches(batch_rows, row_groups=[group], columns=columns, use_threads=False):
        found = batch.schema.names  # the file's order of columns, which may have one name twice
        texts = _values(batch.column(found.index(columns[0])))
        keys = _values(batch.column(found.index(key_field))) if key_field else iter([None] * batch.num_rows)
        for value, key in zip(texts, keys, strict=True):
            row += 1
            yield _record(row, value, _key(key, limit), limit)


def _is_flat(kind: pa.DataType) -> bool:
    """Whether a row of a column holds one text, bytes, or one number: no list of a billion nulls."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    text = types.is_string(kind) or types.is_large_string(kind)
    return text or types.is_binary(kind) or types.is_large_binary(kind) or types.is_primitive(kind)


def _values(column: pa.Array) -> Iterator[Any]:
    """Python values, a few megabytes at a time; text that is no UTF-8 comes as bytes, which no reader checks."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    if not types.is_dictionary(column.type):
        yield from _checked(column).to_pylist()
        return
    words, indices = _checked(column.dictionary), column.indices
    if types.is_primitive(words.type):
        yield from words.take(indices).to_pylist()
        return
    sizes = pc.call_function("binary_length", [words]).take(indices).to_pylist()
    first = held = 0
    for last, size in enumerate(sizes, start=1):
        held += size or 0
        if held >= BATCH_BYTES or last == len(sizes):
            yield from words.take(indices.slice(first, last - first)).to_pylist()
            first, held = last, 0


def _checked(column: pa.Array) -> pa.Array:
    """A column of text that is text, else its bytes."""
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_string(column.type) or types.is_large_string(column.type):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            return column.view(pa.binary() if types.is_string(column.type) else pa.large_binary())
    return column


def _key(value: Any, limit: int) -> str | None:
    """A document's name of its id column; None, so that its row names it, for one that is none."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            return None
    return None if value is None or len(str(value)) > limit else str(value)


def _record(row: int, value: Any, key: str | None, limit: int) -> Record:
    if value is None:
        return Record(row, None, "missing_text", "", key)
    if isinstance(value, bytes):
        if len(value) > limit:
            return Record(row, None, "too_long", excerpt(value), key)
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            return Record(row, None, "invalid_utf8", excerpt(value), key)
    if not isinstance(value, str):
        return Record(row, None, "not_text", excerpt(str(value)), key)
    return document(row, value, limit, key)
