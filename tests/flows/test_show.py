"""What a person sees: lines, bars, tables, the plan, Prefect's artifacts, and where chatter goes."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import fake_steps
from rich.console import Console

from cluster.align.rlhf import RlhfSummary
from cluster.cost import UTILISATION, Machine
from cluster.data.summaries import CorpusSummary, FilterSummary
from cluster.evaluate.summary import EvaluationSummary
from cluster.quantities import count, duration, size
from cluster.release.summary import ReleaseSummary
from cluster.report import Curve, Numbers, Table
from cluster.stage import run_step
from cluster.store.artifact import Artifacts
from cluster.tracking.figures import svg_data_url
from cluster.train.cost import training_cost
from cluster.train.summary import TrainingSummary
from flows import closing, plan, prefect_page, show
from flows.graph import graph
from flows.quiet import log_path, quiet
from flows.recipe_read import read_recipe

ROOT = Path(__file__).parents[2]


CLASSES: dict[str, Any] = {
    "corpus": CorpusSummary, "documents": FilterSummary, "model": TrainingSummary, "rlhf": RlhfSummary,
    "evaluation": EvaluationSummary, "release": ReleaseSummary,
}  # fmt: skip


def outcome(kind: str, values: dict[str, Any], cached: bool = False) -> Any:
    manifest = SimpleNamespace(size=1500, key=f"{kind}/ab", name=kind, files={})
    artifact = SimpleNamespace(kind="model" if kind == "rlhf" else kind, manifest=manifest, fingerprint="ab")
    return SimpleNamespace(artifact=artifact, summary=CLASSES[kind].read(values), cached=cached, seconds=3.0)


# --- numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (count(3), "3"), (count(9999), "9,999"), (count(12_345), "12.3k"), (count(2.5e9), "2.5B"),
        (size(999), "999 B"), (size(1500), "1.5 kB"), (size(123_456_789), "123 MB"),
        (duration(3), "3.0 s"), (duration(59), "59 s"), (duration(185), "3m 05s"),
        (duration(119.9), "2m 00s"), (duration(7900), "2h 11m"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_people(shown: str, text: str) -> None:
    assert shown == text


def test_each_kind_of_summary_has_its_words_and_an_empty_one_has_none() -> None:
    corpus = {"documents": 12_000, "bytes": 2_000_000, "quarantined": {"broken": 1, "empty": 2}}
    assert outcome("corpus", corpus).summary.words() == "12k documents, 2.0 MB, 3 quarantined (empty 2, broken 1)"
    made = outcome("model", {"parameters": 1_000_000, "loss": 2.5, "resumed_from": 40}).summary
    assert made.words() == "1M parameters, loss 2.500, resumed from step 40"
    assert outcome("evaluation", {"bpb": 1.25}).summary.words() == "1.250 bits per byte"
    assert outcome("evaluation", {"bpb": 1.25, "bpb_bound_error": 0.1}).summary.words() == "≤ 1.250 bits per byte"
    assert outcome("evaluation", {}).summary.words() == ""


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("corpus", {"documents": 1, "bytes": 2, "shards": 1, "sources": {}, "quarantined": {"empty": 2},
                    "passed_over": {"hidden": ["web/.DS_Store"]}, "unnamed": {"web": 3}}),
        ("evaluation", {"bpb": 1.25, "task/accuracy": 0.5}),
        ("evaluation", {"bpb": 1.25, "not_measured": {"bpb/code": "there is no held-out text"}}),
        ("rlhf", {**TrainingSummary(3, loss=0.5).values(), "train_items": 1, "heldout_items": 2, "too_long": 0,
                  "reward_before": 0.0,
                  "reward_after": 1.0}),
    ],
)  # fmt: skip
def test_a_summary_is_read_from_a_manifest_as_it_was_written(kind: str, values: dict[str, Any]) -> None:
    assert CLASSES[kind].read(values).values() == values
    assert CLASSES[kind].read({**values, "of a later version": None}).words()


# --- while it runs ------------------------------------------------------------------------------------------------


def test_without_a_terminal_lines_come_at_a_slow_rate_with_the_share_and_the_time_left(monkeypatch: Any) -> None:
    now = SimpleNamespace(t=100.0)
    monkeypatch.setattr(show.time, "monotonic", lambda: now.t)
    out = io.StringIO()
    screen = show.screen(Console(file=out, width=120))
    assert type(screen) is show.Screen
    screen.begin("pretrain")
    for step in range(161):
        screen.progress(step, 400, "loss 2.0")
        now.t += 0.125
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("pretrain  80/400 (20%)  loss 2.0") and "40 s left" in lines[0]


def test_a_stop_is_said_once(monkeypatch: Any) -> None:
    out = io.StringIO()
    screen = show.Screen(Console(file=out, width=120), lambda: True)
    screen.begin("pretrain")
    screen.progress(1, 10, "")
    screen.progress(2, 10, "")
    assert out.getvalue().count("stopping at the next step") == 1


def test_on_a_terminal_there_is_a_bar_with_rate_and_time_left_and_then_a_line() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=140)
    screen = show.screen(console)
    assert type(screen) is show.Bars
    screen.begin("pretrain")
    for step in range(5):
        screen.progress(step, 400, "loss 2.0")
        screen._bars.refresh()
    screen.end("pretrain", outcome("model", {"loss": 2.0}))
    screen.close()
    text = out.getvalue()
    assert "/s  loss 2.0" in text and " left" in text and "✓ pretrain" in text


def test_the_bar_says_that_it_is_stopping() -> None:
    out = io.StringIO()
    screen = show.Bars(Console(file=out, force_terminal=True, width=160), lambda: True)
    screen.begin("pretrain")
    screen._bars.refresh()
    screen.close()
    assert "stopping at the next step" in out.getvalue() and "again ends at once" in out.getvalue()


# --- where chatter goes ------------------------------------------------------------------------------------------


def test_what_processes_and_libraries_say_goes_to_the_log_and_the_console_to_the_screen(tmp_path: Path) -> None:
    script = tmp_path / "noisy.py"
    script.write_text(
        "import logging, os, subprocess, sys, warnings\n"
        "from pathlib import Path\n"
        "from flows.quiet import quiet\n"
        "with quiet(Path('a/the.log')) as console:\n"
        "    print('printed'); sys.stderr.write('to stderr\\n')\n"
        "    os.write(1, b'from C\\n'); os.write(2, b'C stderr\\n')\n"
        "    subprocess.run([sys.executable, '-c', 'print(\"child\")'])\n"
        "    logging.getLogger('ray').warning('logged'); warnings.warn('warned')\n"
        "    console.print('for the person')\n"
        "print('after')\n",
        encoding="utf-8",
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, env=env, encoding="utf-8"
    )
    assert out.stdout == "for the person\nafter\n" and out.stderr == ""
    log = (tmp_path / "a" / "the.log").read_text(encoding="utf-8")
    assert all(w in log for w in ("printed", "to stderr", "from C", "C stderr", "child", "logged", "warned"))
    assert "for the person" not in log


def test_the_screen_comes_back_after_an_error(tmp_path: Path, capfd: Any) -> None:
    before = sys.stdout, logging.getLogger().handlers[:]
    with pytest.raises(RuntimeError), quiet(tmp_path / "x.log"):
        raise RuntimeError
    assert (sys.stdout, logging.getLogger().handlers) == before
    os.write(1, b"back\n")
    assert capfd.readouterr().out == "back\n"


def test_the_log_lies_beside_a_local_store(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert log_path(str(tmp_path / "x" / "store"), "demo").parent == tmp_path / "x" / "logs"
    assert log_path("store", "demo").parent == log_path("s3://b/p", "demo").parent == tmp_path / "logs"


# --- at the end ------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path) -> Any:
    """A run that went through every stage, as closing sees it."""
    before = {"bpb": 2.0, "bpb/web": 2.1, "unigram_bpb": 3.5, "gzip_bpb": 2.6, "task/sums": 0.1}
    after = {**before, "bpb": 1.9, "task/sums": 0.6}
    release = {"name": "demo", "version": 3, "aliases": ["candidate", "champion"], "uri": "models:/demo@champion"}
    release["gate"] = {"passed": True, "reason": "all metrics hold", "metrics": []}
    evaluated = outcome("evaluation", after)
    evaluated.artifact.manifest.files = {"samples.json": None}
    samples = [{"prompt": "Once [x]", "completion": "upon\na time"}]
    evaluated.artifact.read = lambda name: json.dumps(samples).encode()
    rlhf = {"reward_before": 0.1, "reward_after": 0.55, "heldout_items": 64, "loss": 0.1}
    outcomes = {
        "corpus": outcome("corpus", {"documents": 5, "bytes": 10}, cached=True),
        "pretrain": outcome("model", {"loss": 2.5}),
        "evaluate-base": outcome("evaluation", before),
        "rlhf": outcome("rlhf", rlhf),
        "evaluate": evaluated,
        "release": outcome("release", release),
    }
    place = SimpleNamespace(uri="sqlite:///x/mlflow.db", is_server=False, command="mlflow ui")
    return SimpleNamespace(
        name="demo", source="demo", overrides=("seed=2",), until="pretrain",
        outcomes=outcomes, begun=0.0, runs={}, log=tmp_path / "the.log",
        tracker=SimpleNamespace(place=place, url=lambda run: None),
        artifacts=SimpleNamespace(store=SimpleNamespace(url=str(tmp_path / "store"))),
    )  # fmt: skip


def test_the_closing_tables_have_all_that_a_person_asks_for(finished: Any) -> None:
    out = io.StringIO()
    closing.show(finished, Console(file=out, width=120))
    text = out.getvalue()
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.split()}
    assert "cached" in lines["corpus"] and "3.0" in lines["pretrain"]
    assert lines["all"][1:] == ["2.000", "1.900", "3.500", "2.600"]
    assert lines["task/sums"][1:] == ["0.100", "0.600"]
    assert "reward 0.100 → 0.550 (+0.450) on 64 held-out prompts" in text
    assert "Once [x]" in text and "upon a time" in text
    assert "demo version 3 (@candidate @champion)" in text and "Gate passed" in text
    assert str(finished.log) in text and "sqlite:///x/mlflow.db" in text
    after = text.split("Next:\n")[1].splitlines()
    assert len(after) == 4 and "chat models:/demo@champion" in after[0]


@pytest.mark.parametrize("kept", [("corpus",), ("corpus", "pretrain"), ("corpus", "pretrain", "evaluate-base")])
def test_a_part_of_the_line_closes_too_with_commands_to_type(finished: Any, kept: tuple[str, ...]) -> None:
    finished.outcomes = {k: v for k, v in finished.outcomes.items() if k in kept}
    for one in finished.outcomes.values():
        one.artifact.path = lambda verify=True: Path("/x/store/model/ab")
    out = io.StringIO()
    closing.show(finished, Console(file=out, width=120))
    assert "run demo --set seed=2\n" in out.getvalue().split("Next:\n")[1]
    assert " chat " not in out.getvalue()  # it has only been pretrained


# --- Prefect's artifacts ------------------------------------------------------------------------------------------


def test_the_bound_of_a_diffusion_model_is_marked_in_the_closing_table(finished: Any) -> None:
    for name in ("evaluate-base", "evaluate"):
        metrics = {**finished.outcomes[name].summary.metrics, "bpb_bound_error": 0.01, "bpb_bound_error/web": 0.02}
        finished.outcomes[name].summary = EvaluationSummary(metrics)
    out = io.StringIO()
    closing.show(finished, Console(file=out, width=120))
    lines = {line.split()[0]: line.split()[1:] for line in out.getvalue().splitlines() if line.split()}
    assert lines["all"] == ["≤", "2.000", "≤", "1.900", "3.500", "2.600"]
    assert lines["web"] == ["≤", "2.100", "≤", "2.100"] and "bpb_bound_error" not in out.getvalue()


def test_the_data_report_counts_by_source_and_by_reason_most_first() -> None:
    values = {
        "documents": 10, "bytes": 100, "sources": {"web": {"documents": 7}, "code": {"documents": 3}},
        "removed": {"near duplicate": 4, "too short": 9},
    }  # fmt: skip
    made = outcome("documents", values)
    text = prefect_page.markdown("filter", made.summary.report(made.artifact))
    assert "| web | 7 |" in text and text.index("too short | 9") < text.index("near duplicate | 4")
    assert "Nothing was removed" in prefect_page.markdown("filter", FilterSummary().report(made.artifact))


def test_a_training_s_report_has_its_curve_and_an_evaluation_s_its_numbers() -> None:
    made = outcome("model", {"loss": 2.5})
    events = [{"type": "metrics", "step": s, "values": {"loss": 5.0 - s / 100}} for s in (1, 2)]
    made.artifact.manifest.files = {"events.jsonl": SimpleNamespace(size=100)}
    made.artifact.read = lambda name: "".join(json.dumps(e) + "\n" for e in events).encode()
    (curve,) = [b for b in made.summary.report(made.artifact) if isinstance(b, Curve)]
    assert curve.points == [(1, 4.99), (2, 4.98)] and (curve.x_label, curve.y_label) == ("step", "loss")
    evaluated = outcome("evaluation", {"bpb": 1.5})
    assert evaluated.summary.report(evaluated.artifact) == [Numbers({"bpb": 1.5})]
    gate = {"passed": True, "reason": "fine", "metrics": [{"metric": "bpb", "value": 1.5}]}
    released = outcome("release", {"name": "x", "version": 1, "gate": gate})
    assert Table("Gate", ["metric", "value"], [["bpb", 1.5]]) in released.summary.report(released.artifact)


def test_a_curve_is_drawn_in_characters_and_as_svg() -> None:
    points = [(i, 5.0 - i / 100) for i in range(300)]
    plot = prefect_page.text_plot(points).splitlines()
    assert plot[0].startswith("   4.9") and "•" in plot[0].split("│")[1][:3] and plot[-3].rstrip().endswith("•")
    url = svg_data_url(prefect_page.spec_of("pretrain", Curve("loss", "step", "loss", points)))
    svg = base64.b64decode(url.partition("base64,")[2]).decode()
    assert url.startswith("data:image/svg+xml") and "<svg" in svg
    assert len(prefect_page.thin(points, 10)) == 10


def test_a_drawn_curve_s_scale_goes_from_its_lowest_to_its_highest_value() -> None:
    plot = prefect_page.text_plot([(0, 4.0), (1, 2.0), (2, 5.0)]).splitlines()
    assert plot[0] == "   5.000 │  •" and plot[-3] == "   2.000 │ •"
    level = prefect_page.text_plot([(0, 0.0), (1, 0.0)]).splitlines()
    assert level[0] == "   0.000 │••" and sum(line.count("•") for line in level) == 2


def test_an_artifact_that_cannot_be_sent_is_a_warning_and_no_more(caplog: Any) -> None:
    @prefect_page.never_raises
    def fails() -> None:
        raise ConnectionError("Prefect is away")

    assert fails() is False and "Prefect is away" in caplog.text
    assert prefect_page.never_raises(lambda: None)() is True


def test_keys_are_such_as_prefect_takes() -> None:
    assert prefect_page.key_of(SimpleNamespace(name="My Demo_1"), "evaluate-base", "x") == "my-demo-1-evaluate-base-x"  # type: ignore[arg-type]


# --- the plan -----------------------------------------------------------------------------------------------------


def test_the_plan_tells_what_is_cached_and_which_field_changed(tmp_path: Path) -> None:
    stages: Any = {"corpus": lambda ws: {}, "filter": lambda ws: {}, "pack": lambda ws: {}}
    store = Artifacts(tmp_path / "store")
    steps = fake_steps(stages)
    assert [p.reasons for p in plan.look(steps, store)] == [["never made in this store"]] * 3
    run_step(steps[-1], store)
    assert all(p.cached for p in plan.look(steps, store))
    corpus, filtered, packed = plan.look(fake_steps(stages, {"filter": 7}), store)
    assert corpus.cached
    assert filtered.reasons == ["value: default -> 7"]
    assert packed.reasons == ["its before would be new"] and packed.last_seconds is not None


def test_the_plan_sees_damage_and_leaves_it_where_it_is(tmp_path: Path) -> None:
    stages: Any = {"corpus": lambda ws: {}}
    store = Artifacts(tmp_path / "store")
    artifact = run_step(fake_steps(stages)[0], store).artifact
    file = artifact.path() / "data.txt"
    file.write_text("torn", encoding="utf-8")
    (planned,) = plan.look(fake_steps(stages), store)
    assert not planned.cached and " is damaged: data.txt has 4 bytes" in planned.reasons[0]
    assert file.read_text(encoding="utf-8") == "torn"


def test_a_trainings_cost_grows_with_its_tokens_and_falls_with_the_machines_rate() -> None:
    recipe = read_recipe("demo", ["train.steps=10", "train.batch_size=4", "train.seq_len=64"])
    step = next(s for s in graph(recipe) if s.name == "pretrain")
    cost = training_cost(step, Machine(1e9))
    assert cost.tokens == 2560 and cost.memory > 0
    assert cost.seconds == pytest.approx(cost.flops / (1e9 * UTILISATION["cpu"]))
    assert training_cost(step, Machine(2e9)).seconds == pytest.approx(cost.seconds / 2)


def test_a_plan_of_a_line_that_is_all_there_measures_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    stages: Any = {"corpus": lambda ws: {}, "pack": lambda ws: {}}
    store = Artifacts(tmp_path / "store")
    steps = fake_steps(stages)
    run_step(steps[-1], store)
    monkeypatch.setattr(plan, "_machine", lambda *_: pytest.fail("measured"))
    out = io.StringIO()
    recipe: Any = SimpleNamespace(name="fake", cluster=SimpleNamespace(workers="auto"), _begins=None)
    plan.show(recipe, fake_steps(stages), store, Console(file=out))
    assert "Nothing would run" in out.getvalue()
    assert {"corpus", "pack"} <= {line.partition(" ")[0] for line in out.getvalue().splitlines()}, "one below another"
