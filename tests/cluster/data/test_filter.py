"""The filter stage: each document is kept once or removed with a reason, whatever the number of workers."""

from __future__ import annotations

import json
import random
from functools import partial

import pyarrow.parquet as pq
import pytest
from data_pipeline import artifacts, content, corpus_step, ids, rows, run_filter
from pydantic import ValidationError

from cluster.data import filter as stage
from cluster.data import shards
from cluster.data.filter import FilterConfig
from cluster.data.streaming import stream
from cluster.errors import Stopped, UserError
from cluster.stage import Hooks, Step, Surroundings, identity, run_step

STOP = ["the", "be", "to", "of", "and", "that", "have", "with"]


def prose(rng: random.Random, words: int = 120) -> list[str]:
    return [
        rng.choice(STOP) if i % 6 == 0 else f"{rng.choice('bcdfgklm')}a{rng.choice('nrst')}o{rng.randrange(999)}x"
        for i in range(words)
    ]


@pytest.fixture
def folder(tmp_path):
    """Three sources: clean prose with planted copies, bad prose, and code."""
    rng = random.Random(0)
    texts = [prose(rng) for _ in range(200)]
    near = [[*words[:40], "changed", *words[41:]] for words in texts[:20]]
    exact = texts[20:30]
    everything = texts + near + exact
    records = [{"text": " ".join(words) + "\r\n"} for words in everything]
    records += [{"text": "too short"}, {"text": " ".join(prose(rng, 60)[:30] * 5)}]
    (tmp_path / "prose.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    (tmp_path / "code").mkdir()
    for i in range(5):
        lines = [f"def function_{i}_{j}(x):\n    return x * {i * j}\n\n" for j in range(30)]
        (tmp_path / "code" / f"m{i}.py").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "code" / "gen.py").write_text("# auto-generated\n" + "value = other\n" * 50, encoding="utf-8")
    return tmp_path


@pytest.fixture
def given(folder):
    return [
        {"name": "prose", "path": str(folder / "prose.jsonl")},
        {"name": "code", "path": str(folder / "code"), "format": "txt"},
    ]


CONFIG = {"rules": {"code": ["code"], "*": ["gopher"]}, "normalise": {"code": "code"}}


def removed(artifact) -> dict[str, tuple[str, str]]:
    table = pq.read_table(artifact.path() / "removed.parquet").to_pylist()
    return {row["id"]: (row["reason"], row["detail"]) for row in table}


def line(number: int) -> str:
    return f"prose/prose.jsonl:{number}"


def test_every_document_is_kept_or_removed_with_its_reason(ray_local, folder, given):
    made = run_filter(folder / "store", given, **CONFIG)
    gone, kept = removed(made), ids(made)
    assert len(kept) + len(gone) == 232 + 6
    assert not gone.keys() & set(kept)
    for i in range(20):  # near copies: of each pair the smaller id stays, as strings compare
        one, two = sorted([line(i + 1), line(201 + i)])
        assert one in kept and gone[two] == ("near_duplicate", one)
    for i in range(20, 30):
        one, two = sorted([line(i + 1), line(201 + i)])
        assert one in kept and gone[two] == ("exact_duplicate", one)
    assert gone[line(231)] == ("gopher_quality.min_words", "2 < 50")
    assert gone[line(232)][0].startswith("gopher_repetition.")
    assert gone["code/gen.py"][0] == "code.generated"
    assert len(gone) == 20 + 10 + 2 + 1
    texts = {row["id"]: row["text"] for row in rows(made)}
    assert not [text for text in texts.values() if "\r" in text]
    summary = made.summary
    assert summary["documents"] == len(kept) and summary["bytes"] == sum(len(t.encode()) for t in texts.values())
    assert sum(summary["removed"].values()) == len(gone)
    assert summary["sources"]["code"] == {
        "documents": 5,
        "bytes": sum(len(t.encode()) for name, t in texts.items() if name.startswith("code/")),
        "removed": {"code.generated": 1},
    }


def test_the_result_does_not_depend_on_workers_or_on_how_the_work_is_divided(ray_local, folder, given, monkeypatch):
    made = [run_filter(folder / "store0", given, **CONFIG)]
    with monkeypatch.context() as patch:
        patch.setattr(stage, "stream", partial(stream, window=1))
        made.append(run_filter(folder / "store1", given, **CONFIG))
    assert content(made[0]) == content(made[1])
    monkeypatch.setattr(shards, "GROUP_BYTES", 3000)  # many row groups, so many tasks
    made.append(run_filter(folder / "store2", given, **CONFIG))
    assert len(shards.row_groups(made[2].path())) > 10
    assert rows(made[0]) == rows(made[2])
    assert removed(made[0]) == removed(made[2])
    assert made[0].summary == made[2].summary
    assert made[0].fingerprint == made[2].fingerprint


def test_copies_are_kept_where_deduplication_is_off(ray_local, folder, given):
    config = {**CONFIG, "dedup": {"exact": False, "near": False}}
    made = run_filter(folder / "store", given, **config)
    assert not {reason for reason, _ in removed(made).values()} & {"exact_duplicate", "near_duplicate"}
    assert len(ids(made)) == 230 + 5
    config["dedup"] = {"exact": True, "near": False}
    reasons = [reason for reason, _ in removed(run_filter(folder / "store", given, **config)).values()]
    assert reasons.count("exact_duplicate") == 10 and "near_duplicate" not in reasons


def test_a_filter_that_removes_everything_says_why(ray_local, folder, given):
    with pytest.raises(ValueError, match=r"removed every document \(.*gopher_quality.min_words.*\).*thresholds"):
        run_filter(folder / "store", given, thresholds={"gopher_quality": {"min_words": 10_000}})


def test_a_source_that_the_filter_empties_is_named_with_what_became_of_it(ray_local, folder, given):
    copied = rows(run_filter(folder / "store", given, **CONFIG))[0]
    (folder / "copy.jsonl").write_text(json.dumps({"text": copied["text"]}), encoding="utf-8")
    sources = [*given, {"name": "z", "path": str(folder / "copy.jsonl")}]
    said = (
        rf"of the source 'z' \(1 exact_duplicate\): z/copy.jsonl:1 is a copy of {copied['id']}\. Leave the source out"
    )
    with pytest.raises(UserError, match=said):
        run_filter(folder / "store", sources, **CONFIG)
    wrong = {**CONFIG, "rules": ["gopher"]}  # for code, too
    with pytest.raises(UserError, match=r"of the source 'code' \(.*gopher.*choose other \[filter\] rules for it"):
        run_filter(folder / "store", given, **wrong)


def test_a_table_by_source_names_real_sources(ray_local, folder, given):
    with pytest.raises(ValueError, match=r"\[filter.rules\] names the source 'cod'.*Did you mean 'code'"):
        run_filter(folder / "store", given, rules={"cod": ["code"]})


@pytest.mark.parametrize(
    "config",
    [
        {"rules": ["goofer"]},
        {"normalise": "nfkc"},
        {"thresholds": {"gopher_quality": {"min_word": 3}}},
        {"dedup": {"bands": 0}},
    ],
)
def test_wrong_settings_are_refused(config):
    with pytest.raises(ValidationError):
        FilterConfig(**config)


def test_defaults_are_the_published_ones():
    config = FilterConfig()
    assert (config.dedup.bands, config.dedup.rows, config.dedup.ngram) == (14, 8, 5)
    assert config.thresholds.gopher_quality.min_words == 50
    assert config.thresholds.gopher_repetition.max_duplicate_ngram_chars[10] == 0.10
    assert identity(config) == {}
    assert identity(FilterConfig(rules=("code",))) == {"rules": ["code"]}


def test_settings_by_source():
    table = {"code": "code", "*": "none"}
    assert [stage.by_source(table, name, "text") for name in ("code", "web")] == ["code", "none"]
    assert stage.by_source({"code": "code"}, "web", "text") == "text"
    assert stage.by_source("none", "web", "text") == "none"


def test_the_stage_reports_its_progress_and_stops_when_asked(ray_local, folder, given):
    seen: list[tuple[float, float, str]] = []
    step = Step("filter", stage.STAGE, FilterConfig(**CONFIG), {"corpus": corpus_step(given)})  # type: ignore[arg-type]
    run_step(step.inputs["corpus"], artifacts(folder / "store"))
    with pytest.raises(Stopped):
        run_step(step, artifacts(folder / "store"), Surroundings(hooks=Hooks(stopping=lambda: True)))
    run_step(step, artifacts(folder / "store"), Surroundings(hooks=Hooks(progress=lambda *now: seen.append(now))))
    assert seen[-1][0] == seen[-1][1] > 0
    assert seen[-1][2] == "235 of 238 documents pass"


def test_a_document_of_which_normalisation_leaves_nothing_is_removed_as_empty(ray_local, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\u0001\\u0002"}\n{"text": "A text."}\n', encoding="utf-8")
    made = run_filter(tmp_path / "store", [{"name": "a", "path": str(tmp_path / "a.jsonl")}], rules=())
    assert [row["text"] for row in rows(made)] == ["A text."]
    assert made.summary["removed"] == {"empty": 1}
