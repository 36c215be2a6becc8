"""Shards are cut by the documents alone, however they came."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pytest

from cluster.data.shards import ShardWriter, read_documents, row_groups, shard_files

TEXTS = [f"text {i} " * (i % 37) for i in range(900)]


def table(start: int, stop: int) -> pa.Table:
    return pa.table(
        {
            "id": [f"s/{i}" for i in range(start, stop)],
            "source": ["s"] * (stop - start),
            "text": pa.array(TEXTS[start:stop], pa.string()),
            "more": list(range(start, stop)),
        }
    )


def write(folder, steps: int) -> dict[str, str]:
    folder.mkdir()
    writer = ShardWriter(folder, shard_bytes=60_000, group_bytes=10_000)
    for start in range(0, len(TEXTS), steps):
        writer.write(table(start, min(start + steps, len(TEXTS))))
    writer.close()
    assert writer.documents == len(TEXTS) and writer.bytes == sum(map(len, TEXTS))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shard_files(folder)}


@pytest.mark.parametrize("steps", [1, 7, 900])
def test_the_same_documents_give_the_same_files_however_they_are_handed_in(tmp_path, steps):
    once = write(tmp_path / "a", 100)
    assert len(once) > 1
    assert write(tmp_path / "b", steps) == once


def test_row_groups_are_all_documents_in_order(tmp_path):
    write(tmp_path / "a", 50)
    read = pa.concat_tables(read_documents(tmp_path / "a"))
    assert read.column_names == ["id", "source", "text"]
    assert read.column("text").to_pylist() == TEXTS
    groups = row_groups(tmp_path / "a")
    assert [group.first for group in groups] == [sum(g.rows for g in groups[:i]) for i in range(len(groups))]
    assert sum(group.rows for group in groups) == len(TEXTS)


def test_a_corpus_without_documents_is_one_empty_shard(tmp_path):
    writer = ShardWriter(tmp_path)
    writer.write(table(0, 0))
    writer.close()
    assert len(shard_files(tmp_path)) == 1
    assert list(read_documents(tmp_path)) == []


def test_a_row_group_ends_with_the_document_that_fills_it(tmp_path):
    writer = ShardWriter(tmp_path, group_bytes=10)
    writer.write(pa.table({"id": list("abcdef"), "source": ["s"] * 6, "text": ["x" * 5] * 6}))
    writer.close()
    assert [group.rows for group in row_groups(tmp_path)] == [2, 2, 2]
