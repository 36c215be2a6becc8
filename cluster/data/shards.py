"""Document shards: the files that the corpus and filter stages write and every later stage reads.

    documents-00000.parquet, documents-00001.parquet, …      zstd, in document order
    id: string      unique name, e.g. "prose/guide.md" or "web/part-3.jsonl.gz:1042"
    source: string  the name of the recipe's [[sources]] entry
    text: large_string

A shard ends at about `SHARD_BYTES` of text and a row group at about `GROUP_BYTES`, counted in the order of the
documents alone: the same documents give the same files, whatever the number of workers that made them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from model.inside import inside

if TYPE_CHECKING:
    import pyarrow as pa

    from cluster.store.artifact import Artifact

SHARD_BYTES = 64 << 20
GROUP_BYTES = 4 << 20


def schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("id", pa.string()), ("source", pa.string()), ("text", pa.large_string())])


class ShardWriter:
    """Writes tables of documents into `folder` as numbered shards.

    Args:
        folder: where the shards go; it must exist.
        shard_bytes, group_bytes: of text in a shard and a row group; default: SHARD_BYTES, GROUP_BYTES.
    """

    def __init__(
        self,
        folder: Path,
        shard_bytes: int | None = None,
        group_bytes: int | None = None,
    ):
        self.folder = folder
        self.shard_bytes, self.group_bytes = shard_bytes or SHARD_BYTES, group_bytes or GROUP_BYTES
        self.schema = schema()
        self.documents = self.bytes = self.shards = 0
        self._writer = None
        self._pending: list[pa.Table] = []
        self._pending_bytes = self._shard_bytes = 0

    def write(self, table: pa.Table) -> None:
        """Append documents; a row group is cut exactly where its text reaches `group_bytes`."""
        import numpy as np
        import pyarrow.compute as pc

        table = table.select(self.schema.names).cast(self.schema)
        sizes = pc.binary_length(table.column("text")).to_numpy().astype(np.int64)  # type: ignore
        self.documents += table.num_rows
        self.bytes += int(sizes.sum())
        start = 0
        total = np.cumsum(sizes)
        while start < table.num_rows:
            before = int(total[start - 1]) if start else 0
            room = self.group_bytes - self._pending_bytes
            stop = min(int(np.searchsorted(total, before + room)) + 1, table.num_rows)
            self._pending.append(table.slice(start, stop - start))
            self._pending_bytes += int(total[stop - 1]) - before
            start = stop
            if self._pending_bytes >= self.group_bytes:
                self._flush()

    def close(self) -> None:
        """End the last shard; an empty corpus still has one, empty, shard."""
        self._flush()
        if self._writer is None and self.shards == 0:
            self._open()
        self._end()

    def _open(self) -> None:
        import pyarrow.parquet as pq

        path = self.folder / f"documents-{self.shards:05d}.parquet"
        self._writer = pq.ParquetWriter(path, self.schema, compression="zstd", use_dictionary=["source"])  # type: ignore[arg-type]
        self.shards += 1

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._pending:
            return
        if self._writer is None:
            self._open()
        table = pa.concat_tables(self._pending).combine_chunks()
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))  # type: ignore[union-attr]
        self._shard_bytes += self._pending_bytes
        self._pending, self._pending_bytes = [], 0
        if self._shard_bytes >= self.shard_bytes:
            self._end()

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer, self._shard_bytes = None, 0


class RowGroup(NamedTuple):
    """One row group of a folder of shards, as a unit of parallel work."""

    file: str
    group: int
    first: int  # number of documents before it in the folder
    rows: int
    bytes: int  # uncompressed


def shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("documents-*.parquet"))


def row_groups(folder: Path) -> list[RowGroup]:
    """All row groups of the folder's shards, in document order."""
    import pyarrow.parquet as pq

    found, first = [], 0
    for path in shard_files(folder):
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            info = metadata.row_group(group)
            found.append(RowGroup(path.name, group, first, info.num_rows, info.total_byte_size))
            first += info.num_rows
    return found


def read_group(folder: Path, group: RowGroup) -> pa.Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(inside(folder, group.file)) as file:
        return file.read_row_group(group.group, use_threads=False)


def documents(artifact: Artifact, group: RowGroup) -> Iterator[tuple[str, str]]:
    """(source, text) of one row group, in a worker."""
    table = read_group(artifact.path(verify=False), group)
    for batch in table.select(["source", "text"]).to_batches(max_chunksize=1024):
        yield from zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)


def read_documents(folder: Path) -> Iterator[pa.Table]:
    """The folder's documents, a row group at a time, in order."""
    for group in row_groups(folder):
        yield read_group(folder, group)
