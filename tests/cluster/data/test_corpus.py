"""The corpus stage: what is good goes through in order, what is bad is counted by its reason."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from data_pipeline import artifacts, content, corpus_step, ids, quarantine, rows, run_corpus

from cluster.data import corpus
from cluster.data.corpus import CorpusConfig, Source
from cluster.data.filter import DedupConfig, FilterConfig
from cluster.data.readers import sources
from cluster.data.streaming import stream
from cluster.data.summaries import CorpusSummary
from cluster.errors import Stopped, UserError
from cluster.identity import field_sides
from cluster.stage import Hooks, Surroundings, external, fingerprint, run_step


def jsonl(texts, **more):
    return "".join(json.dumps({"text": text, **more}) + "\n" for text in texts).encode()


@pytest.fixture
def mixed(tmp_path):
    """A folder with every format and every kind of bad input that the platform promises to survive."""
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(
        jsonl(["first", ""]) + b'{"text": "caf\xe9"}\n' + b'{"text": "' + b"x" * 50_000_000 + b'"}\n' + jsonl(["last"])
    )
    broken = gzip.compress(jsonl(f"line {i} {i * i}" for i in range(2000)))
    (folder / "b.jsonl.gz").write_bytes(broken[: len(broken) // 2])
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(jsonl(["packed"]) + b"{bad}\n"))
    pq.write_table(pa.table({"text": ["row one", None, " ", "row four"]}), folder / "d.parquet")
    (folder / "deep" / "e.txt").write_text("a file\nis a document\n", encoding="utf-8")
    (folder / "deep" / "f.md").write_bytes(b"broken \xff")
    (folder / "deep" / "g.parquet").write_bytes(b"PAR1 but no more")
    (folder / "deep" / "h.bin").write_bytes(b"not for us")
    (folder / "deep" / ".hidden.txt").write_text("not for us", encoding="utf-8")
    return folder


def test_what_is_passed_over_is_counted_and_named_and_no_part_of_the_fingerprint(ray_local, tmp_path, mixed):
    def step():
        return corpus_step([{"name": "web", "path": str(mixed)}])

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked.txt").write_text("through a link", encoding="utf-8")
    before = external(step())
    (mixed / "link").symlink_to(tmp_path / "elsewhere")
    assert (linked := external(step())) != before
    os.mkfifo(mixed / "pipe.jsonl")
    (mixed / "gone.txt").symlink_to(mixed / "nowhere.txt")
    (mixed / "round").symlink_to(mixed)
    for name in (".DS_Store", "deep/e.txt~", "deep/#e.txt#", "deep/.e.txt.swp", "Thumbs.db", "deep/i.bin"):
        (mixed / name).write_bytes(b"x")
    assert external(step()) == linked
    made = run_corpus(tmp_path / "store", [{"name": "web", "path": str(mixed)}])
    assert "web/link/linked.txt" in ids(made)
    assert made.summary["passed_over"] == {
        "dangling_link": ["web/gone.txt"],
        "hidden": ["web/.DS_Store", "web/deep/.e.txt.swp", "web/deep/.hidden.txt"],
        "read_already": ["web/round/"],
        "side_file": ["web/Thumbs.db", "web/deep/#e.txt#", "web/deep/e.txt~"],
        "special_file": ["web/pipe.jsonl"],
        "unknown_kind": ["web/deep/h.bin", "web/deep/i.bin"],
    }
    assert made.summary["sources"]["web"]["passed_over"] == 11
    words = CorpusSummary.read(made.summary).words()
    assert "11 passed over (dangling_link 1: web/gone.txt; hidden 3: web/.DS_Store, …;" in words
    lines = (made.path() / "passed-over.jsonl").read_text(encoding="utf-8").splitlines()
    assert {"source": "web", "name": "pipe.jsonl", "reason": "special_file"} in map(json.loads, lines)


def test_every_bad_input_is_counted_and_the_rest_goes_through(ray_local, tmp_path, mixed):
    made = run_corpus(tmp_path / "store", [{"name": "web", "path": str(mixed)}])
    found = {row["id"]: row["text"] for row in rows(made)}
    from_gzip = [name for name in found if "b.jsonl.gz" in name]
    assert 500 < len(from_gzip) < 2000
    assert from_gzip == [f"web/b.jsonl.gz:{i + 1}" for i in range(len(from_gzip))]
    assert found["web/b.jsonl.gz:500"] == "line 499 249001"
    assert {name: text for name, text in found.items() if name not in from_gzip} == {
        "web/a.jsonl:1": "first",
        "web/a.jsonl:5": "last",
        "web/c.jsonl.zst:1": "packed",
        "web/d.parquet:1": "row one",
        "web/d.parquet:4": "row four",
        "web/deep/e.txt": "a file\nis a document\n",
    }
    bad = quarantine(made)
    assert bad == [
        ("web", "a.jsonl:2", "empty"),
        ("web", "a.jsonl:3", "invalid_utf8"),
        ("web", "a.jsonl:4", "too_long"),
        ("web", f"b.jsonl.gz:{len(from_gzip) + 1}", "truncated"),
        ("web", "c.jsonl.zst:2", "invalid_json"),
        ("web", "d.parquet:2", "missing_text"),
        ("web", "d.parquet:3", "empty"),
        ("web", "deep/f.md", "invalid_utf8"),
        ("web", "deep/g.parquet", "unreadable"),
    ]
    expected = {"empty": 2, "invalid_json": 1, "invalid_utf8": 2, "missing_text": 1, "too_long": 1, "truncated": 1}
    assert made.summary["quarantined"] == {**expected, "unreadable": 1}
    assert made.summary["sources"]["web"]["quarantined"] == made.summary["quarantined"]
    assert made.summary["documents"] == len(found) == len(rows(made))
    assert made.summary["bytes"] == sum(len(text.encode()) for text in found.values())


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(7):
        texts = [f"{number} {i} " + "word " * (i % 50) if i % 11 else "" for i in range(300)]
        (folder / f"{number}.jsonl").write_bytes(jsonl(texts))
    (folder / "t.txt").write_text("one\n\ntwo\ntwo\n\n\nthree", encoding="utf-8")
    return folder


def test_the_result_does_not_depend_on_workers_or_on_how_the_work_is_divided(ray_local, tmp_path, many, monkeypatch):
    given = [
        {"name": "b", "path": f"{many}/*.jsonl"},
        {"name": "a", "path": str(many / "t.txt"), "split": "blank_lines"},
        {"name": "doc", "path": "installed://prose?packages=rich&max_mb=0.1"},
    ]
    made = [run_corpus(tmp_path / "store0", given)]
    monkeypatch.setattr(sources, "MIN_PART_BYTES", 1)  # a task for every file
    monkeypatch.setattr(sources, "TABLE_BYTES", 2000)
    made.append(run_corpus(tmp_path / "store1", given))
    monkeypatch.setattr(corpus, "stream", partial(stream, window=1))
    made.append(run_corpus(tmp_path / "store2", given))
    assert content(made[0]) == content(made[1]) == content(made[2])
    assert len({artifact.fingerprint for artifact in made}) == 1
    names = ids(made[0])
    assert [name.split("/")[0] for name in names] == sorted(
        (n.split("/")[0] for n in names), key=["b", "a", "doc"].index
    )
    assert [name for name in names if name.startswith("a/")] == ["a/t.txt:1", "a/t.txt:3", "a/t.txt:7"]
    assert names[:2] == ["b/0.jsonl:2", "b/0.jsonl:3"]


def test_caps_are_exact_and_take_the_first_documents(ray_local, tmp_path, many):
    path = f"{many}/*.jsonl"
    made = run_corpus(
        tmp_path / "store",
        [
            {"name": "all", "path": path},
            {"name": "ten", "path": path, "max_documents": 10},
            {"name": "few", "path": path, "max_bytes": 5000},
            {"name": "loose", "path": path, "max_documents": 10**6},
        ],
    )
    by = {name: [r["text"] for r in rows(made) if r["source"] == name] for name in ("all", "ten", "few", "loose")}
    assert by["ten"] == by["all"][:10]
    assert by["loose"] == by["all"]
    size = len(by["few"])
    assert by["few"] == by["all"][:size]
    assert sum(map(len, by["few"])) <= 5000 < sum(map(len, by["all"][: size + 1]))
    assert made.summary["sources"]["ten"]["documents"] == 10


def test_a_cap_that_lies_in_a_later_table_takes_all_of_those_before(ray_local, tmp_path):
    (tmp_path / "big.jsonl").write_bytes(jsonl([f"{i} " + "word " * 400 for i in range(14_000)]))  # 28 MB: several
    made = run_corpus(tmp_path / "store", [{"name": "s", "path": str(tmp_path / "big.jsonl"), "max_documents": 13_000}])
    assert [int(row["text"].split()[0]) for row in rows(made)] == list(range(13_000))


def test_a_cap_below_the_first_document_is_what_leaves_a_source_empty(ray_local, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "forty-two bytes of text"}\n')
    (tmp_path / "b.jsonl").write_bytes(b"7\n" + (tmp_path / "a.jsonl").read_bytes())
    for name, before in (("a", ""), ("b", ", and before it all its records were quarantined (1 not_object; first ")):
        source = {"name": "s", "path": str(tmp_path / f"{name}.jsonl"), "max_bytes": 10}
        words = f"gives no document: the first has more bytes than max_bytes = 10{before}"
        with pytest.raises(UserError, match=re.escape(words)):
            run_corpus(tmp_path / "store", [source])


def test_fields_and_ids_of_ones_own(ray_local, tmp_path):
    data = tmp_path / "data.txt"
    data.write_text('{"body": "x y", "key": "k1"}\n{"body": "z", "key": null}\n', encoding="utf-8")
    source = {"name": "s", "path": str(data), "format": "jsonl", "text_field": "body", "id_field": "key"}
    made = run_corpus(tmp_path / "store", [source])
    assert ids(made) == ["s/k1", "s/data.txt:2"]
    assert CorpusSummary.read(made.summary).words().endswith(", 1 of s without its id_field")
    with pytest.raises(UserError, match=r"none of its 2 documents has the id_field 'kye'"):
        run_corpus(tmp_path / "store", [{**source, "id_field": "kye"}])


def test_where_the_files_lie_and_their_weight_do_not_count_but_their_content_does(tmp_path, many):
    moved = tmp_path / "moved"
    many.rename(moved)
    first = fingerprint(corpus_step([{"name": "s", "path": str(moved)}]))
    moved.rename(many)
    assert fingerprint(corpus_step([{"name": "s", "path": str(many), "weight": 7}])) == first
    (many / "0.jsonl").write_bytes(jsonl(["changed"]))
    assert fingerprint(corpus_step([{"name": "s", "path": str(many)}])) != first


def test_what_is_in_a_fingerprint_is_on_that_side_on_purpose():
    inside, outside = field_sides(Source)
    assert outside == ["path", "weight"]
    assert inside == ["name", "format", "text_field", "id_field", "split", "max_documents", "max_bytes"]
    assert field_sides(CorpusConfig) == (["sources", "max_document_bytes"], [])
    assert field_sides(FilterConfig) == (["normalise", "rules", "thresholds", "dedup"], [])
    assert field_sides(DedupConfig) == (["exact", "near", "bands", "rows", "ngram"], [])


def test_external_has_a_digest_for_each_source(many):
    step = corpus_step([{"name": "a", "path": str(many)}, {"name": "b", "path": "installed://code?packages=rich"}])
    digests = external(step)
    assert digests.keys() == {"a", "b"} and len(set(digests.values())) == 2


@pytest.mark.parametrize(
    "source,message",
    [
        ({"path": "nowhere/*.txt"}, r"Source 's': nothing matches its path '.*nowhere/\*\.txt'"),
        ({"path": "{}/only"}, r"no file of a known kind, such as 'x\.bin'.* set format"),
        ({"path": "installed://prose?packages=nonesuch"}, "no package 'nonesuch'"),
        ({"path": "ftp://x/y"}, "ftp"),
    ],
)
def test_a_source_that_gives_nothing_is_refused_before_anything_starts(tmp_path, source, message):
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x.bin").write_bytes(b"x")
    config = CorpusConfig(sources=[{"name": "s", "path": source["path"].format(tmp_path)}])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=message):
        corpus.external(config)


@pytest.mark.parametrize(
    "data,more,message",
    [
        (
            jsonl(["x"]),
            {"text_field": "body"},
            r"all its records were quarantined \(1 missing_text; first d.jsonl:1.*text_field is 'body'",
        ),
        (b"\n\n", {}, "it is empty"),
        (b"\xff\n", {}, "1 invalid_utf8"),
    ],
)
def test_a_source_without_one_document_is_an_error_that_says_why(ray_local, tmp_path, data, more, message):
    (tmp_path / "d.jsonl").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        run_corpus(tmp_path / "store", [{"name": "s", "path": str(tmp_path / "d.jsonl"), **more}])


def test_two_sources_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two sources are named 's'"):
        CorpusConfig(sources=[{"name": "s", "path": "a"}, {"name": "s", "path": "b"}])  # type: ignore[list-item]


def test_the_stage_reports_its_progress_and_stops_when_asked(ray_local, tmp_path, many, monkeypatch):
    monkeypatch.setattr(sources, "MIN_PART_BYTES", 1)
    seen: list[tuple[float, float, str]] = []
    step = corpus_step([{"name": "s", "path": str(many)}])
    run_step(step, artifacts(tmp_path / "store"), Surroundings(hooks=Hooks(progress=lambda *now: seen.append(now))))
    done = [now[0] for now in seen]
    assert done == sorted(done) and done[-1] == seen[-1][1] > 0
    assert "documents" in seen[-1][2]
    with pytest.raises(Stopped):
        run_step(step, artifacts(tmp_path / "other"), Surroundings(hooks=Hooks(stopping=lambda: True)))


def test_memory_stays_flat_over_a_large_file(ray_local, tmp_path):
    """The driver's memory does not grow with the file: 120 MB go through."""
    path = tmp_path / "large.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for number in range(120):
            file.write(jsonl(f"{number} {i} " + "text " * 200 for i in range(1000)))
    source = {"name": "s", "path": str(path)}
    run_corpus(tmp_path / "warm", [{**source, "max_documents": 20_000}])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = run_corpus(tmp_path / "store", [source])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert made.summary["documents"] == 120_000
    assert grown < 100  # the text alone would be 120, as Python strings more
