"""What a line and its stages say to MLflow, against MLflow's real SQLite store."""

import json
import os
import time
from pathlib import Path

import pytest
from tiny_mlflow import curve, runs, tracker

from cluster.events import EventLog, read_events
from cluster.tracking import outbox
from cluster.tracking.place import connect, locate
from cluster.tracking.tracker import Tracker, flatten, numbers_of


def test_a_run_of_the_line_holds_a_run_of_each_stage(place, tmp_path):
    track = tracker(place)
    track.start_line("demo", {"train": {"lr": 1e-3}, "sources": [{"name": "a"}]}, "name = 'demo'\n", {"x": "y"})
    stage = track.stage("pretrain", "f1", tmp_path / "events.jsonl", tags={"artifact": "model/f1"}, params={"d": 8})
    stage.finish("FINISHED", {"loss": 2.5, "documents": {"prose": 3}, "device": "cpu"})
    track.stage("pack", "f2", cached=True, summary={"tokens": 7})
    assert track.finish(timeout=60)

    found = runs(place, "line")
    assert set(found) == {"demo", "pretrain"}  # a cached stage has no run without a curve
    line, pretrain = found["demo"], found["pretrain"]
    assert {r.info.status for r in found.values()} == {"FINISHED"}
    assert pretrain.data.tags["mlflow.parentRunId"] == line.info.run_id
    assert line.data.params == {"train.lr": "0.001", "sources.0.name": "a"}
    assert line.data.tags["x"] == "y"
    assert (
        Path(connect(place.uri).download_artifacts(line.info.run_id, "recipe.toml")).read_text(encoding="utf-8")
        == "name = 'demo'\n"
    )
    assert pretrain.data.metrics == {"loss": 2.5, "documents/prose": 3.0}
    assert pretrain.data.params == {"d": "8"}
    assert pretrain.data.tags["tokenmill.fingerprint"] == "f1"
    assert pretrain.data.tags["artifact"] == "model/f1"
    assert "pack: made elsewhere" in line.data.tags["mlflow.note.content"]
    assert line.data.metrics == {"pretrain/loss": 2.5, "pretrain/documents/prose": 3.0, "pack/tokens": 7.0}
    assert not track.folder.exists()


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("fate", ["stays", "renamed", "deleted"])
def test_the_curve_is_the_events_files_whatever_becomes_of_it(place, tmp_path, monkeypatch, linked, fate):
    if not linked:
        monkeypatch.setattr(os, "link", lambda *a, **k: (_ for _ in ()).throw(OSError("another file system")))
    track = tracker(place)
    track.start_line("demo")
    (tmp_path / "out").mkdir()
    log = EventLog(tmp_path / "out" / "events.jsonl")
    stage = track.stage("pretrain", "f1", log.path)
    for step in range(1500):  # more than one request holds
        log.metrics(step, {"loss": 1 / (step + 1), "lr": 0.1}, time_ms=1_700_000_000_000 + step)
    if fate == "renamed":
        (tmp_path / "out").rename(tmp_path / "published")
    if fate == "deleted":
        log.path.unlink()
    stage.finish()
    assert track.finish(timeout=60)
    expected = [(s, 1 / (s + 1), 1_700_000_000_000 + s) for s in range(1500)]
    assert curve(place, stage.run_id, "loss") == expected


def test_a_stage_too_quick_to_be_followed_is_read_from_its_artifact(place, tmp_path):
    track = tracker(place)
    track.start_line("demo")
    stage = track.stage("corpus", "f1", tmp_path / "not there yet" / "events.jsonl")
    EventLog(tmp_path / "published.jsonl").metrics(0, {"documents": 4})
    stage.finish(events_path=tmp_path / "published.jsonl")
    assert track.finish(timeout=60)
    assert runs(place, "line")["corpus"].data.metrics == {"documents": 4.0}


def test_a_restarted_worker_repeats_no_point(place, tmp_path):
    track = tracker(place)
    track.start_line("demo")
    log = EventLog(tmp_path / "events.jsonl")
    stage = track.stage("pretrain", "f1", log.path)
    for step in [*range(8), *range(5, 12)]:  # it died at 7 and went on from its checkpoint at 5
        log.metrics(step, {"loss": float(step)})
    log.metrics(4, {"evaluation": 1.0})  # a metric that lags behind is its own curve
    stage.finish("FINISHED", {"loss": 99.0})
    assert track.finish(timeout=60)
    assert [p[:2] for p in curve(place, stage.run_id, "loss")] == [(s, float(s)) for s in range(12)]
    assert [p[:2] for p in curve(place, stage.run_id, "evaluation")] == [(4, 1.0)]


def test_what_a_stage_says_between_two_looks_is_told(place, tmp_path, monkeypatch):
    """The sender has read the stage's events, and then finds the run closed, with more events before that."""
    real, late = outbox.Delivery._deliver, []

    def deliver(self, key, path, which, position, **kw):
        if which == "own" and key == "001-pretrain" and not late:
            late.append(key)
            log.metrics(1, {"loss": 1.0})
            stage.finish("FINISHED", {"loss": 1.0})
        return real(self, key, path, which, position, **kw)

    monkeypatch.setattr(outbox.Delivery, "_deliver", deliver)
    track = tracker(place)
    track.start_line("demo")
    log = EventLog(tmp_path / "events.jsonl")
    stage = track.stage("pretrain", "f1", log.path)
    log.metrics(0, {"loss": 2.0})
    while not late:
        time.sleep(0.02)
    assert track.finish(timeout=60)
    assert [p[:2] for p in curve(place, stage.run_id, "loss")] == [(0, 2.0), (1, 1.0)]


def test_texts_tables_and_figures_reach_the_run(place, tmp_path):
    track = tracker(place)
    track.start_line("demo")
    log = EventLog(tmp_path / "events.jsonl")
    stage = track.stage("pretrain", "f1", log.path)
    log.text("notes.txt", "# hello")
    log.text("notes.html", "<script>alert(1)</script>")
    log.table("samples", ["step", "text"], [[0, "a"]])
    log.table("samples", ["step", "text"], [[9, "é"]])
    log.figure("loss", {"title": "loss", "kind": "line", "series": [{"name": "train", "x": [0, 1], "y": [3, 2]}]})
    stage.finish()
    assert track.finish(timeout=60)
    client = connect(place.uri)
    assert {f.path for f in client.list_artifacts(stage.run_id)} == {
        "notes.txt",
        "notes.html.txt",  # MLflow's page would run an HTML page's scripts, and render Markdown
        "samples.json",
        "figures",
    }
    table = json.loads(Path(client.download_artifacts(stage.run_id, "samples.json")).read_text(encoding="utf-8"))
    assert table == {"columns": ["step", "text"], "data": [[0, "a"], [9, "é"]]}
    shown = json.loads(client.get_run(stage.run_id).data.tags["mlflow.loggedArtifacts"])
    assert shown == [{"path": "samples.json", "type": "table"}]  # what MLflow's own log_table writes
    figure = Path(client.download_artifacts(stage.run_id, "figures/loss.png")).read_bytes()
    assert figure.startswith(b"\x89PNG")


def test_a_metric_of_any_name_is_taken(place):
    names = ["bpb", "bpb/http://host/x", "a//b", "../x", "/srv/x", "./a/./b", "<b>[x](javascript:1)", "🦜", "..", ""]
    track = tracker(place)
    track.start_line("demo")
    run = track.stage("evaluate", "f")
    run.log.params(dict.fromkeys(names, 1))
    run.finish("FINISHED", dict.fromkeys(names, 2.0))
    assert track.finish(timeout=60)
    logged = runs(place, "line")["evaluate"].data
    taken = {"bpb", "bpb/http:/host/x", "a/b", "x", "srv/x", "_b__x__javascript:1_", "_"}
    assert taken <= set(logged.params) and taken <= set(logged.metrics)


def test_a_line_of_cached_stages_costs_little(place):
    begun = time.process_time()  # not wall time, which here is the neighbours' affair
    track = tracker(place)
    track.start_line("demo", {str(i): i for i in range(100)}, "text")
    for number in range(11):
        track.stage(f"stage{number}", f"f{number}", cached=True, summary={str(i): i for i in range(20)})
    queued = time.process_time() - begun
    assert track.finish(timeout=60)
    assert queued < 0.3
    assert time.process_time() - begun < 1.5
    assert len(runs(place, "line")) == 1  # a schedule of cached runs fills no page


def test_system_metrics_are_sampled_beside_the_stages(place):
    track = Tracker(place, "line", system_seconds=0.1)
    track.start_line("demo")
    stage = track.stage("pretrain", "f1")
    ends = time.monotonic() + 60
    while not all("system/system_memory" in p.read_text(encoding="utf-8") for p in track.folder.glob("00*.jsonl")):
        assert time.monotonic() < ends
        time.sleep(0.05)
    stage.finish()
    assert track.finish(timeout=60)
    for run in runs(place, "line").values():
        assert 0 <= run.data.metrics["system/cpu_utilization_percentage"] <= 100
        assert run.data.metrics["system/system_memory_usage_megabytes"] > 10


def test_a_closed_run_is_sampled_no_more(place):
    track = tracker(place)
    track.start_line("demo")
    closed, at_work = track.stage("pack", "f0"), track.stage("pretrain", "f1")
    closed.finish()
    track._sample({"system/load": 1.0})
    values = [[e["values"] for _, e in read_events(r.log.path) if e["type"] == "metrics"] for r in (closed, at_work)]
    assert values == [[], [{"system/load": 1.0}]]
    assert track.finish(timeout=60)


@pytest.mark.parametrize(
    ("line", "left_open"), [("FINISHED", "FAILED"), ("FAILED", "FAILED"), ("KILLED", "KILLED")]
)  # fmt: skip
def test_a_stage_left_open_when_the_line_ends_is_never_shown_as_finished(place, line, left_open):
    track = tracker(place)
    track.start_line("demo")
    track.stage("pack", "f0").finish()
    track.stage("pretrain", "f1")
    assert track.finish(line, timeout=60)
    statuses = {name: r.info.status for name, r in runs(place, "line").items()}
    assert statuses == {"demo": line, "pack": "FINISHED", "pretrain": left_open}


def test_a_tracker_that_is_never_used_leaves_no_trace(tmp_path):
    assert Tracker(locate(tmp_path / "store"), "line").finish()
    assert not list(tmp_path.iterdir())


def test_a_run_follows_one_file(place, tmp_path):
    track = tracker(place)
    track.start_line("demo")
    stage = track.stage("pretrain", "f1", tmp_path / "events.jsonl")
    stage.follow(tmp_path / "events.jsonl")  # the same once more
    with pytest.raises(ValueError, match="start a new stage run"):
        stage.follow(tmp_path / "other.jsonl")
    assert track.finish(timeout=60)


def test_a_cached_stage_links_the_run_that_made_it_also_from_another_experiment(place, tmp_path):
    first = tracker(place)
    first.start_line("first")
    made = [first.stage("pretrain", "f1"), first.stage("instruct", "f2"), first.stage("failed", "f3")]
    for run in made:
        run.finish("FAILED" if run is made[2] else "FINISHED")
    assert first.finish(timeout=60)
    ids = [run.run_id for run in made]
    for experiment in ("line", "another"):
        second = Tracker(place, experiment, system_seconds=None)
        line = second.start_line("second")
        assert second.stage("pretrain", "f1", cached=True, summary={"loss": 2.5}) is line
        second.stage("instruct", "f2", cached=True)
        second.stage("failed", "f3", cached=True)
        assert second.finish(timeout=60)
        (data,) = [r.data for name, r in runs(place, experiment).items() if name == "second"]
        assert data.metrics == {"pretrain/loss": 2.5}
        made_by = {k: v for k, v in data.tags.items() if k.startswith("tokenmill.made_by.")}
        assert made_by == {"tokenmill.made_by.pretrain": ids[0], "tokenmill.made_by.instruct": ids[1]}
        note = data.tags["mlflow.note.content"]
        assert f"/runs/{ids[0]})" in note and f"/runs/{ids[1]})" in note and "failed: made elsewhere" in note


def test_a_stage_before_the_line_is_refused(place):
    with pytest.raises(ValueError, match="start_line"):
        tracker(place).stage("pretrain", "f")


def test_flatten_and_numbers():
    assert flatten({"a": {"b": 1}, "c": [{"d": 2}, 3], "e": [1, 2], "f": {}}) == {
        "a.b": 1,
        "c.0.d": 2,
        "c.1": 3,
        "e": [1, 2],
        "f": {},
    }
    assert numbers_of({"a": {"b": 1}, "x.y": 2, "s": "text", "t": True, "n": None}) == {"a/b": 1.0, "x.y": 2.0}


def test_the_place_of_a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    local = locate("store")
    assert local.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert local.artifact_root == f"{tmp_path}/mlartifacts"
    remote = locate("s3://bucket/prefix/")
    assert (remote.uri, remote.artifact_root) == (local.uri, "s3://bucket/prefix/mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000/")
    assert locate("store").uri == "http://host:5000"
    assert locate("store").artifact_root is None
    assert locate("store", "sqlite:///other/m.db").uri == f"sqlite:///{tmp_path}/other/m.db"
    assert locate("store", "sqlite:///other/m.db").artifact_root == f"{tmp_path}/other/mlartifacts"
    with pytest.raises(ValueError, match="http"):
        locate("store", "./mlruns")
