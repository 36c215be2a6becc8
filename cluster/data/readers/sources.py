"""A recipe's [[sources]]: which files a source means, their division into parts, and what a worker reads.

    path ── expand ──▶ files ── plan ──▶ parts (JSON) ══ Ray ══▶ read_part ──▶ tables of documents and bad records

A document's id is the source's name, the file's name relative to the path, and its line or row there
("web/part-3.jsonl.gz:1042"), or the id field's value: the same on every machine, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from cluster.data.readers import installed, parquet, reading
from cluster.data.readers.chunks import Chunks
from cluster.errors import UserError
from cluster.stage import how

if TYPE_CHECKING:
    import pyarrow as pa

    from cluster.store.source import SourceFile
    from cluster.store.walk import Passed

MIN_PART_BYTES, MAX_PART_BYTES, PARTS = 4 << 20, 128 << 20, 64
TABLE_BYTES = 4 << 20  # text in one table that a worker sends back


class Source(BaseModel):
    """Where text comes from: files of one kind, here or on S3, or the embedded installed://prose and code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="unique; it names files and columns")
    # `path` isn't part of the fingerprint: the files' names and content are, wherever they lie
    path: str = how(
        description="a file, a folder, a glob (** too), s3://bucket/prefix, installed://prose or installed://code"
    )
    format: Literal["auto", "jsonl", "parquet", "txt"] = Field(
        "auto", description="auto: by the file's name (.jsonl .parquet .txt .md …, each also .gz and .zst)"
    )
    text_field: str = Field("text", description="the key (jsonl) or column (parquet) that holds the text")
    id_field: str | None = Field(None, description="the key or column that names the document, if it has one")
    split: Literal["file", "blank_lines", "lines"] = Field(
        "file", description="what a document is in a text file: the file, a block between blank lines, a line"
    )
    weight: float = how(1.0, gt=0, description="the source's share in training, before normalisation")
    max_documents: int | None = Field(None, gt=0, description="only the first so many documents")
    max_bytes: int | None = Field(None, gt=0, description="only the first documents with so many bytes of UTF-8")

    @property
    def capped(self) -> bool:
        return self.max_documents is not None or self.max_bytes is not None


class File(NamedTuple):
    file: SourceFile
    format: reading.Format
    compression: str | None

    @property
    def name(self) -> str:
        """Relative to the source's path."""
        return self.file.name


def find_files(source: Source) -> list[File]:
    """The files of a source, in the order of their names. Raises: see `survey_files`."""
    return survey_files(source)[0]


def survey_files(source: Source) -> tuple[list[File], list[Passed]]:
    """The files of a source and what is passed over there, both in the order of their names.

    Raises:
        UserError: nothing is there, or nothing of a known format.
    """
    from cluster.store.source import look
    from cluster.store.walk import Passed

    entries, passed = look(source.path)
    found = []
    for entry in entries:
        known, compression = reading.kind_of(entry.name.rpartition("/")[2])
        kind = known if source.format == "auto" else source.format
        if kind is None:
            passed.append(Passed(entry.name, "unknown_kind"))
        else:
            found.append(File(entry, kind, compression))
    if found:
        return found, sorted(passed)
    if unknown := [one.name for one in passed if one.reason == "unknown_kind"]:
        raise UserError(
            f"Source {source.name!r}: {source.path!r} has no file of a known kind, such as {unknown[0]!r}. Known are "
            f"{' '.join(reading.FORMATS)}, each also with .gz or .zst; otherwise set format = "
            '"jsonl", "parquet" or "txt".'
        )
    if passed:
        names = ", ".join(f"{one.name} ({one.reason.replace('_', ' ')})" for one in passed[:3])
        more = ", …" if len(passed) > 3 else ""
        raise UserError(f"Source {source.name!r}: {source.path!r} has only what is passed over: {names}{more}.")
    raise UserError(f"Source {source.name!r}: nothing matches its path {source.path!r}.")


def plan(source: Source, limit: int) -> list[dict[str, Any]]:
    """The source's parts, in order. Their division changes neither the documents nor their order."""
    common = {"source": source.name, "limit": limit}
    if source.path.startswith(installed.SCHEME):
        return [{**common, "kind": "installed", **part} for part in installed.plan(source.path)]
    files = find_files(source)
    target = min(max(sum(f.file.size for f in files) // PARTS, MIN_PART_BYTES), MAX_PART_BYTES)
    common |= {"kind": "files", "text_field": source.text_field, "id_field": source.id_field}
    parts: list[dict[str, Any]] = []
    size = target
    for file in files:
        if size >= target:
            parts.append({**common, "split": source.split, "files": [], "bytes": 0})
            size = 0
        size += file.file.size
        parts[-1]["files"].append([file.file.url, file.name, file.format, file.compression])
        parts[-1]["bytes"] = size
    return parts


def read_part(part: dict[str, Any]) -> Iterator[pa.Table]:
    """Tables of (id, source, text, reason, where, excerpt, part, read) for a part of a plan; runs in a worker.

    `reason` is null for documents, and `text` for bad records. `read` counts the part's bytes read so far.
    """
    rows = _Rows(part)
    if part["kind"] == "installed":
        for name, record in installed.read(part, part["limit"]):
            rows.add(name, record)
            if rows.bytes >= TABLE_BYTES:
                yield rows.table()
    else:
        yield from _read_files(part, rows)
    rows.read = part["bytes"]
    yield rows.table()


def _read_files(part: dict[str, Any], rows: _Rows) -> Iterator[pa.Table]:
    from cluster.store.source import open_binary

    text_field, id_field, limit = part["text_field"], part["id_field"], part["limit"]
    for url, name, kind, compression in part["files"]:
        before = rows.read
        with closing(open_binary(url)) as stream:
            chunks = Chunks(stream, compression)
            if kind == "parquet":
                records = parquet.read_parquet(stream, compression, text_field, id_field, limit)
            elif kind == "jsonl":
                records = reading.read_jsonl(chunks, text_field, id_field, limit)
            else:
                records = reading.read_text(chunks, part["split"], limit)
            for record in records:
                rows.add(name, record)
                rows.read = before + chunks.consumed
                if rows.bytes >= TABLE_BYTES:
                    yield rows.table()


class _Rows:
    """Records on their way into a table."""

    def __init__(self, part: dict[str, Any]):
        self.source, self.number, self.read = part["source"], part["number"], 0
        self._clear()

    def _clear(self) -> None:
        self.rows: list[tuple[str, str | None, str | None, str, str]] = []
        self.bytes = 0

    def add(self, name: str, record: reading.Record) -> None:
        where = f"{name}:{record.position}" if record.position else name
        key = f"{self.source}/{record.key if record.key is not None else where}"
        self.rows.append((key, record.text, record.reason, where, record.excerpt))
        self.bytes += 200 + 2 * len(record.excerpt) + len(record.text or "")

    def table(self) -> pa.Table:
        import pyarrow as pa

        ids, texts, reasons, wheres, excerpts = zip(*self.rows, strict=True) if self.rows else ((),) * 5
        count = len(ids)
        self._clear()
        return pa.table(
            {
                "id": pa.array(ids, pa.string()),
                "source": pa.array([self.source] * count, pa.string()),
                "text": pa.array(texts, pa.large_string()),
                "reason": pa.array(reasons, pa.string()),
                "where": pa.array(wheres, pa.string()),
                "excerpt": pa.array(excerpts, pa.string()),
                "part": pa.array([self.number] * count, pa.int32()),
                "read": pa.array([self.read] * count, pa.int64()),
            }
        )
