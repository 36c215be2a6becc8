"""Bad bytes never end a read: each is counted by its reason, and the rest goes through."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cluster.data.readers import parquet as parquet_module
from cluster.data.readers.chunks import EXCERPT, Chunks
from cluster.data.readers.parquet import read_parquet
from cluster.data.readers.reading import kind_of, read_jsonl, read_text

LIMIT = 10_000_000
DOCUMENTS = [f"document {i}, with a word or two" for i in range(5000)]


def jsonl(texts):
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def compress(data: bytes, how: str | None) -> bytes:
    if how == "gzip":
        return gzip.compress(data)
    return zstandard.compress(data) if how == "zstd" else data


def records(data: bytes, compression=None, limit=LIMIT, text_field="text", id_field=None):
    return list(read_jsonl(Chunks(io.BytesIO(data), compression), text_field, id_field, limit))


def texts(found):
    return [record.text for record in found if record.reason is None]


def reasons(found):
    return [(record.position, record.reason) for record in found if record.reason]


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_every_document_comes_out_whole_and_in_order(compression):
    found = records(compress(jsonl(DOCUMENTS), compression), compression)
    assert texts(found) == DOCUMENTS
    assert [record.position for record in found] == list(range(1, len(DOCUMENTS) + 1))


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_several_members_are_one_file(compression):
    data = compress(jsonl(DOCUMENTS[:10]), compression) + compress(jsonl(DOCUMENTS[10:20]), compression)
    assert texts(records(data, compression)) == DOCUMENTS[:20]


def test_zero_padding_after_gzip_is_no_damage():
    assert reasons(records(gzip.compress(jsonl(DOCUMENTS[:3])) + b"\0" * 512, "gzip")) == []


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("kept", [0.5, 0.9, 0.999])
def test_truncated_archive_keeps_all_documents_before_the_break(compression, kept):
    data = compress(jsonl(DOCUMENTS), compression)
    found = records(data[: int(len(data) * kept)], compression)
    assert [reason for _, reason in reasons(found)] == ["truncated"]
    assert found[-1].reason == "truncated"
    good = texts(found)
    assert good == DOCUMENTS[: len(good)]
    if compression == "gzip":  # deflate gives out nearly all of what it was given; zstd only whole blocks of 128 KB
        assert len(good) > len(DOCUMENTS) * kept * 0.9


def test_truncated_zstd_keeps_the_blocks_before_the_break():
    data = zstandard.compress(jsonl(f"document {i}, {i * i}, {i**5}" for i in range(50_000)))
    assert len(texts(records(data[: len(data) * 9 // 10], "zstd"))) > 50_000 * 0.8


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_bytes_that_are_no_archive_are_corrupt(compression):
    assert reasons(records(b"this was never compressed\n" * 100, compression)) == [(1, "corrupt")]


def test_a_flipped_byte_in_gzip_is_found_by_its_checksum():
    data = bytearray(gzip.compress(jsonl(DOCUMENTS)))
    data[-6] ^= 1  # CRC-32
    assert reasons(records(bytes(data), "gzip"))[-1][1] == "corrupt"


def test_broken_utf8_costs_its_own_line_only():
    lines = jsonl(DOCUMENTS[:3]).split(b"\n")
    lines[1] = b'{"text": "caf\xe9"}'
    found = records(b"\n".join(lines))
    assert texts(found) == [DOCUMENTS[0], DOCUMENTS[2]]
    assert reasons(found) == [(2, "invalid_utf8")]
    assert found[1].excerpt == '{"text": "caf\\xe9"}'


def test_half_a_surrogate_pair_is_no_text():
    assert reasons(records(b'{"text": "\\ud83d alone"}\n{"text": "\\ud83d\\ude00 both"}\n')) == [(1, "invalid_utf8")]


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_a_50_mb_line_is_quarantined_in_flat_memory(compression):
    bad = b'{"text": "' + b"x" * 50_000_000 + b'"}\n'
    data = compress(jsonl(DOCUMENTS[:2]) + bad + jsonl(DOCUMENTS[2:4]), compression)
    tracemalloc.start()
    found = list(read_jsonl(Chunks(io.BytesIO(data), compression), "text", None, 1_000_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts(found) == DOCUMENTS[:4]
    assert reasons(found) == [(3, "too_long")]
    assert len(found[2].excerpt) <= EXCERPT
    # zstd turns these 50 MB into some hundred bytes, and gives them out at once
    assert peak < (120_000_000 if compression == "zstd" else 12_000_000)


@pytest.mark.parametrize("size,reason", [(1000, None), (1001, "too_long")])
def test_the_limit_counts_bytes_of_text_and_is_still_allowed(size, reason):
    text = "é" * (size // 2) + "x" * (size % 2)
    assert [r.reason for r in read_text([text.encode()], "file", 1000)] == [reason]
    assert [r.reason for r in rows(parquet(text=[text]), limit=1000)] == [reason]


def test_empty_documents_are_counted_and_blank_lines_are_not():
    found = records(b'{"text": ""}\n\n  \n{"text": " \\n\\t "}\n{"text": "a"}\n')
    assert reasons(found) == [(1, "empty"), (4, "empty")]
    assert texts(found) == ["a"]


@pytest.mark.parametrize(
    "line,reason",
    [
        (b"{not json}", "invalid_json"),
        (b"[1, 2]", "not_object"),
        (b'"x"', "not_object"),
        (b"null", "not_object"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"n": ' + b"9" * 5000 + b"}", "missing_text"),
        (b'{"body": "x"}', "missing_text"),
        (b'{"text": null}', "missing_text"),
        (b'{"text": ["x"]}', "not_text"),
        (b'{"text": 3}', "not_text"),
    ],
)
def test_a_line_that_is_no_document_says_why(line, reason):
    found = records(line + b"\n" + jsonl(["good"]))
    assert reasons(found) == [(1, reason)]
    assert texts(found) == ["good"]


def test_text_and_id_fields_and_a_byte_order_mark():
    data = b'\xef\xbb\xbf{"body": "one", "url": "u1"}\r\n{"body": "two", "url": 7}'
    found = records(data, text_field="body", id_field="url")
    assert [(record.text, record.key) for record in found] == [("one", "u1"), ("two", "7")]


SPLITS = {
    "file": [(0, "a\nb\n\n\nc d\n")],
    "lines": [(1, "a"), (2, "b"), (5, "c d")],
    "blank_lines": [(1, "a\nb"), (5, "c d")],
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_text_is_split_as_asked_however_the_chunks_fall(split, size):
    data = b"a\nb\n\n\nc d\n"
    chunks = [data[i : i + size] for i in range(0, len(data), size)]
    assert [(r.position, r.text) for r in read_text(chunks, split, 100)] == SPLITS[split]


def test_broken_utf8_costs_the_text_file_or_the_line():
    data = b"good\nbad \xff\n\ngood too\n"
    assert reasons(list(read_text([data], "file", 100))) == [(0, "invalid_utf8")]
    assert texts(list(read_text([data], "lines", 100))) == ["good", "good too"]
    assert texts(list(read_text([data], "blank_lines", 100))) == ["good too"]


@pytest.mark.parametrize("split", SPLITS)
def test_an_overlong_text_is_quarantined(split):
    found = list(read_text([b"x" * 60, b"x" * 60, b"\n\nrest\n"], split, 100))
    assert found[0].reason == "too_long"
    assert texts(found) == ([] if split == "file" else ["rest"])


def test_an_empty_file_is_one_empty_document():
    assert reasons(list(read_text([], "file", 100))) == [(0, "empty")]


def test_truncated_text_file_is_quarantined_and_its_whole_lines_are_not():
    data = gzip.compress("\n".join(DOCUMENTS).encode())
    data = data[: len(data) // 2]
    assert reasons(list(read_text(Chunks(io.BytesIO(data), "gzip"), "file", LIMIT))) == [(0, "truncated")]
    found = list(read_text(Chunks(io.BytesIO(data), "gzip"), "lines", LIMIT))
    assert texts(found) == DOCUMENTS[: len(texts(found))]
    assert found[-1].reason == "truncated"


def parquet(**columns) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=2)
    return out.getvalue()


def rows(data: bytes, compression=None, limit=LIMIT, id_field=None):
    return list(read_parquet(io.BytesIO(data), compression, "text", id_field, limit))


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_rows_are_documents(compression, kind):
    data = parquet(text=pa.array(["a", "é", None, " ", "x" * 200]).cast(kind), key=[1, 2, 3, 4, 5])
    found = rows(compress(data, compression), compression, limit=100, id_field="key")
    assert [(r.position, r.key, r.text) for r in found if not r.reason] == [(1, "1", "a"), (2, "2", "é")]
    assert reasons(found) == [(3, "missing_text"), (4, "empty"), (5, "too_long")]


def test_wide_rows_of_parquet_are_read_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(parquet_module, "BATCH_BYTES", 1000)
    asked, real = [], pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: asked.append(a[1]) or real(*a, **k))
    texts = [f"{i} " + "x" * 300 for i in range(20)]
    assert [record.text for record in rows(parquet(text=texts))] == texts
    assert asked and all(1 <= number < 8 and isinstance(number, int) for number in asked)


def test_parquet_text_that_is_no_utf8_costs_its_row():
    broken = pa.array([b"good", b"caf\xe9", None, b"fine"]).view(pa.string())
    assert reasons(rows(parquet(text=broken))) == [(2, "invalid_utf8"), (3, "missing_text")]


@pytest.mark.parametrize(
    "data,reason",
    [(b"no parquet at all", "unreadable"), (b"", "unreadable"), (parquet(body=["x"]), "missing_text")],
)
def test_an_unreadable_parquet_file_is_one_bad_record(data, reason):
    assert reasons(rows(data)) == [(0, reason)]


def test_parquet_numbers_are_not_text():
    assert reasons(rows(parquet(text=[1, 2]))) == [(1, "not_text"), (2, "not_text")]


def test_a_broken_row_group_costs_itself_only():
    data = bytearray(parquet(text=[f"row {i} " + "x" * 50 for i in range(6)]))
    info = pq.read_metadata(io.BytesIO(bytes(data))).row_group(1).column(0)
    start = info.dictionary_page_offset or info.data_page_offset
    data[start : start + info.total_compressed_size] = b"\xff" * info.total_compressed_size
    found = rows(bytes(data))
    assert [record.position for record in found if not record.reason] == [1, 2, 5, 6]
    assert reasons(found) == [(3, "unreadable")]


@pytest.mark.parametrize(
    "name,expected",
    [
        ("a.jsonl", ("jsonl", None)),
        ("a.b.JSONL.GZ", ("jsonl", "gzip")),
        ("x.parquet.zst", ("parquet", "zstd")),
        ("README.md", ("txt", None)),
        ("archive.gz", (None, "gzip")),
        ("Makefile", (None, None)),
        (".txt", (None, None)),
    ],
)
def test_format_and_compression_by_name(name, expected):
    assert kind_of(name) == expected


@pytest.mark.parametrize("column", ["text", "id", "other"])
def test_any_column_may_name_a_row_also_the_text_s_own(column):
    table = {"other": [1.5, 2.5], "id": [b"x", b"\xff"], "text": ["a", "b"]}
    keys = {"text": ["a", "b"], "id": ["x", None], "other": ["1.5", "2.5"]}[column]
    out = io.BytesIO()
    pq.write_table(pa.table(table), out)
    out.seek(0)
    found = list(read_parquet(out, None, "text", column, LIMIT))
    assert [(r.text, r.key) for r in found] == [("a", keys[0]), ("b", keys[1])]


def test_a_parquet_file_whose_columns_have_no_utf_8_names_is_unreadable():
    out = io.BytesIO()
    pq.write_table(pa.table({"texts": ["a"]}), out)
    data = out.getvalue().replace(b"texts", b"\xff\xfets")
    assert [r.reason for r in read_parquet(io.BytesIO(data), None, "text", None, LIMIT)] == ["unreadable"]
