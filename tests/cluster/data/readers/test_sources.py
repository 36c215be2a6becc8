"""What a source means: the same files, ids and parts on a disk and on S3."""

from __future__ import annotations

import gzip
import json
import os

import pyarrow as pa
import pytest

from cluster.data.readers import sources
from cluster.data.readers.sources import Source, find_files, plan, read_part


def read(source: Source) -> list[dict]:
    parts = plan(source, 10_000_000)
    tables = [
        t for number, part in enumerate(parts) for t in read_part(json.loads(json.dumps({**part, "number": number})))
    ]
    return pa.concat_tables(tables).select(["id", "text", "reason", "where"]).to_pylist()


FILES = {
    "a/one.txt": b"one",
    "a/b/two.jsonl.gz": gzip.compress(b'{"text": "two"}\n{"text": "three"}\n{'),
    "a/three.bin": b"?",
    "a/_SUCCESS": b"",
    "a/.git/x.txt": b"?",
    "a/__init__.py": b"import this",
    "c.txt": b"other",
}


@pytest.fixture
def place(store_url) -> str:
    """The files, once on the disk and once on S3."""
    if store_url.startswith("s3://"):
        import boto3

        bucket, _, prefix = store_url.removeprefix("s3://").partition("/")
        client = boto3.client("s3", endpoint_url=os.environ.get("AWS_ENDPOINT_URL"))
        for name, data in FILES.items():
            client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data)
    else:
        from pathlib import Path

        for name, data in FILES.items():
            path = Path(store_url, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return store_url


def test_a_folder_a_glob_and_a_file(place):
    names = {
        "a": ["b/two.jsonl.gz", "one.txt"],
        "a/*.txt": ["one.txt"],
        "a/**/*.gz": ["b/two.jsonl.gz"],
        "a/one.txt": ["one.txt"],
    }
    for path, expected in names.items():
        assert [file.name for file in find_files(Source(name="s", path=f"{place}/{path}"))] == expected
    assert [f.name for f in find_files(Source(name="s", path=f"{place}/a", format="txt"))] == [
        "__init__.py",
        *names["a"],
        "three.bin",
    ]
    with pytest.raises(ValueError, match="nothing matches"):
        find_files(Source(name="s", path=f"{place}/nothing"))


def test_documents_and_bad_records_are_the_same_from_a_disk_and_from_s3(place):
    assert read(Source(name="s", path=f"{place}/a")) == [
        {"id": "s/b/two.jsonl.gz:1", "text": "two", "reason": None, "where": "b/two.jsonl.gz:1"},
        {"id": "s/b/two.jsonl.gz:2", "text": "three", "reason": None, "where": "b/two.jsonl.gz:2"},
        {"id": "s/b/two.jsonl.gz:3", "text": None, "reason": "invalid_json", "where": "b/two.jsonl.gz:3"},
        {"id": "s/one.txt", "text": "one", "reason": None, "where": "one.txt"},
    ]


@pytest.mark.parametrize("name", ["", "a b", "a/b", ".x", "é"])
def test_names_that_can_not_name_files_are_refused(name):
    with pytest.raises(ValueError, match="name"):
        Source(name=name, path="x")


def test_the_bytes_that_were_read_grow_over_the_files_of_a_part(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TABLE_BYTES", 1)  # a table for each record
    for name, size in (("a.txt", 30), ("b.txt", 50), ("c.txt", 20)):
        (tmp_path / name).write_bytes(b"x" * size)
    (part,) = plan(Source(name="s", path=str(tmp_path)), 10_000_000)
    tables = [table for table in read_part({**part, "number": 0}) if len(table)]
    assert [table["read"].to_pylist() for table in tables] == [[30], [80], [100]]
