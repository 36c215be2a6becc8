"""No parquet file takes more memory than its documents may have, whatever it makes of a few kilobytes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.data.readers.parquet import read_parquet
from cluster.data.readers.parquet_pages import pages, survey
from tests.files import ROOT

LIMIT = 10_000_000
MEASURE = """
import json, resource, sys
import pyarrow.parquet
from cluster.data.readers.parquet import read_parquet
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before, reasons = peak(), {}
with open(sys.argv[1], "rb") as file:
    for record in read_parquet(file, None, "text", "id", int(sys.argv[2])):
        reasons[str(record.reason)] = reasons.get(str(record.reason), 0) + 1
print(json.dumps([peak() - before, reasons]))
"""


def read(path: Path) -> tuple[int, dict[str, int]]:
    """(megabytes that reading took, reason -> records), in a process of its own."""
    command = [sys.executable, "-c", MEASURE, str(path), str(LIMIT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    taken, reasons = json.loads(done.stdout)
    return taken, reasons


def one_text_in_a_dictionary() -> tuple[pa.Table, dict]:
    indices = pa.array([0] * 2_000, pa.int32())
    return pa.table({"text": pa.DictionaryArray.from_arrays(indices, pa.array(["b" * 9_000_000]))}), {}


def one_text_in_a_dictionary_of_the_file() -> tuple[pa.Table, dict]:
    return pa.table({"text": ["b" * 9_000_000] * 100}), {"dictionary_pagesize_limit": 1 << 30}


def each_begins_with_the_one_before() -> tuple[pa.Table, dict]:
    texts = ["c" * 9_000_000 + str(i) for i in range(60)]
    return pa.table({"text": texts}), {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}


def one_long_value() -> tuple[pa.Table, dict]:
    return pa.table({"text": ["a" * 400_000_000]}), {"use_dictionary": False}


def a_page_of_many() -> tuple[pa.Table, dict]:
    return pa.table({"text": ["y" * 400_000] * 1024}), {"use_dictionary": False}


def a_long_id() -> tuple[pa.Table, dict]:
    return pa.table({"text": ["fine"], "id": ["k" * 400_000_000]}), {"use_dictionary": False}


def nothing_but_nulls() -> tuple[pa.Table, dict]:
    return pa.table({"text": pa.nulls(3_000_000, pa.string())}), {}


def a_list_of_nulls() -> tuple[pa.Table, dict]:
    return pa.table({"text": pa.array([[None] * 20_000_000], pa.list_(pa.int32()))}), {}


@pytest.mark.parametrize(
    ("make", "reasons"),
    [
        (one_text_in_a_dictionary, {"None": 119, "unreadable": 1}),
        (one_text_in_a_dictionary_of_the_file, {"None": 100}),
        (each_begins_with_the_one_before, {"None": 60}),
        (one_long_value, {"too_long": 1}),
        (a_page_of_many, {"unreadable": 1}),
        (a_long_id, {"too_long": 1}),
        (nothing_but_nulls, {"unreadable": 1}),
        (a_list_of_nulls, {"not_text": 1}),
    ],
)
def test_a_bomb_is_quarantined_in_flat_memory(make: object, reasons: dict[str, int], tmp_path: Path) -> None:
    table, options = make()  # type: ignore[operator]
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd", **options)
    assert (tmp_path / "x.parquet").stat().st_size < 100_000
    taken, found = read(tmp_path / "x.parquet")
    assert found == reasons
    assert taken < 300


def small(version: str = "1.0", **options: object) -> bytes:
    out = io.BytesIO()
    texts = [f"document {i} " * (i % 7) for i in range(500)]
    table = pa.table({"text": texts, "id": [str(i) for i in range(500)]})
    pq.write_table(table, out, row_group_size=200, data_page_size=500, data_page_version=version, **options)
    return out.getvalue()


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_the_headers_of_pages_say_what_arrow_reads(version: str, compression: str) -> None:
    """Data pages have each row once, pages fill their chunk to its last byte, and the bytes are the footer's."""
    data = small(version, compression=compression, write_statistics=True)
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            found = list(pages(io.BytesIO(data), column))
            assert sum(p.values for p in found if not p.shared) == column.num_values
            assert sum(p.size for p in found) <= column.total_uncompressed_size
            assert sum(p.compressed for p in found) < column.total_compressed_size
            assert survey(iter(found), LIMIT).problem is None


WHOLE = small()


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_file_gives_records_and_never_raises(changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for place, byte in changes:
        data[place] = byte
    for record in read_parquet(io.BytesIO(bytes(data)), None, "text", "id", LIMIT):
        assert (record.text is None) == (record.reason is not None)
