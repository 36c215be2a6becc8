"""Whatever dies or is away, what was said reaches MLflow once: the outbox, against MLflow's real SQLite store."""

import json
import math
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from tiny_mlflow import curve, runs, tracker

from cluster.events import EventLog, read_events
from cluster.tracking import outbox, sender
from cluster.tracking import tracker as tracker_module
from cluster.tracking.place import Place, connect
from cluster.tracking.tracker import Tracker

DYING = """
import os, signal, sys, time
from pathlib import Path
from cluster.events import EventLog
from cluster.tracking.tracker import Tracker, locate

folder = Path(sys.argv[1])
if sys.argv[2] == "down":
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
track = Tracker(locate(folder / "store"), "line", system_seconds=None)
track.start_line("demo")
log = EventLog(folder / "out" / "events.jsonl")
(folder / "out").mkdir()
run = track.stage("pretrain", "f1", log.path)
for step in range(300):
    log.metrics(step, {"loss": float(step)}, time_ms=1_700_000_000_000 + step)
if sys.argv[2] == "up":
    run.wait_run_id(60)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_batch_sent_twice_is_stored_once(place, tmp_path, monkeypatch):
    """The process dies between MLflow's answer and the note of it."""
    track = tracker(place)
    track.start_line("demo")
    log = EventLog(tmp_path / "events.jsonl")
    stage = track.stage("pretrain", "f1", log.path)
    for step in range(50):
        log.metrics(step, {"loss": float(step)})
    log.table("samples", ["text"], [["a"], ["b"]])
    stage.finish()
    real, failures = outbox.Delivery._save, []

    def save(self):
        if len(failures) < 8 and len(failures) % 2 == 0:
            failures.append("lost")
            kept = self.folder / "position.json"  # what the disk still says
            said = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
            self._positions = {k: outbox.Position(**v) for k, v in said.items()}
            raise OSError("no space left on device")
        failures.append("kept")
        real(self)

    monkeypatch.setattr(outbox.Delivery, "_save", save)
    assert track.finish(timeout=60)
    assert failures.count("lost") == 4
    assert [p[:2] for p in curve(place, stage.run_id, "loss")] == [(s, float(s)) for s in range(50)]
    table = Path(connect(place.uri).download_artifacts(stage.run_id, "samples.json")).read_text(encoding="utf-8")
    assert json.loads(table) == {"columns": ["text"], "data": [["a"], ["b"]]}
    assert set(runs(place, "line")) == {"demo", "pretrain"}


def test_a_lost_answer_to_create_run_makes_no_second_run(place, monkeypatch):
    from mlflow import MlflowClient

    real, lost = MlflowClient.create_run, []

    def create_run(self, *args, **kw):
        run = real(self, *args, **kw)
        if len(lost) < 2:
            lost.append(run.info.run_id)
            raise ConnectionError("the answer was lost")
        return run

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    track = tracker(place)
    track.start_line("demo")
    track.stage("pack", "f").finish()
    assert track.finish(timeout=60)
    assert {r.info.run_id for r in runs(place, "line").values()} == set(lost)


def test_what_mlflow_refuses_holds_up_nothing(place, tmp_path):
    track = tracker(place)
    track.start_line("demo", {"lr": 1})
    track.line.log.text("between.txt", "two requests")
    track.line.log.params({"lr": 2, "seed": 3})  # MLflow's params can't change
    log = EventLog(tmp_path / "events.jsonl")
    stage = track.stage("pretrain", "f1", log.path)
    log.figure("broken", {"kind": "pie", "series": []})
    log.metrics(1, {"loss % of 7 (µ)": 2.0, "diverged": math.inf, "undefined": math.nan})
    stage.finish()
    assert track.finish(timeout=60)
    found = runs(place, "line")
    assert found["demo"].data.params == {"lr": "1", "seed": "3"}
    metrics = found["pretrain"].data.metrics
    assert metrics["loss _ of 7 _µ_"] == 2.0
    assert math.isnan(metrics["diverged"])
    assert math.isnan(metrics["undefined"])
    refused = list(place.state.glob("*-refused.jsonl"))
    assert [e["run"] for _, e in read_events(refused[0])] == ["000-line", "001-pretrain"]


def test_a_killed_process_loses_no_point_and_its_runs_are_marked_killed(place, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DYING, tmp_path, "up"], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == done.stderr == ""  # MLflow's chatter doesn't reach the terminal
    (tmp_path / "out" / "events.jsonl").unlink()  # as the next run of the stage does
    track = tracker(place)
    track.start_line("demo again")
    stage = track.stage("pretrain again", "f1")
    stage.finish()
    assert track.finish(timeout=60)
    found = runs(place, "line")
    assert found["demo"].info.status == found["pretrain"].info.status == "KILLED"
    assert found["pretrain"].data.tags["mlflow.parentRunId"] == found["demo"].info.run_id
    expected = [(s, float(s), 1_700_000_000_000 + s) for s in range(300)]
    assert curve(place, found["pretrain"].info.run_id, "loss") == expected
    assert not [p for p in place.state.iterdir() if p.is_dir()]


def test_a_stop_waits_no_longer_for_a_server_that_hangs(place):
    with socket.create_server(("127.0.0.1", 0), backlog=100) as hangs:  # it takes connections, and answers nothing
        track = Tracker(Place(f"http://127.0.0.1:{hangs.getsockname()[1]}", None, place.state), "line", None)
        track.start_line("demo", {"lr": 1}, "text")
        asked = threading.Timer(1.0, track.folder.joinpath("stop").touch)  # while it waits already
        asked.start()
        begun = time.monotonic()
        assert not track.finish("KILLED", timeout=600, stopping=track.folder.joinpath("stop").exists)
        assert time.monotonic() - begun < 60
        assert "1 run of this line whole" in track.undelivered()


def test_a_server_that_is_away_delays_nothing_and_the_next_run_delivers(place, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracker_module, "GIVE_UP_SECONDS", 600.0)
    away, go, attempt = Place("http://127.0.0.1:9", None, place.state), threading.Event(), sender.Task.attempt
    monkeypatch.setattr(sender.Task, "attempt", lambda task, **more: (go.wait(300), attempt(task, **more))[1])
    begun = time.monotonic()
    track = Tracker(away, "line", system_seconds=None)
    track.start_line("demo", {"lr": 1}, "text")
    log = EventLog(tmp_path / "events.jsonl")
    stage = track.stage("pretrain", "f1", log.path)
    for step in range(100):
        log.metrics(step, {"loss": float(step)})
    stage.finish()
    assert track.url(stage) is None
    assert time.monotonic() - begun < 60  # of the five minutes that an attempt takes
    go.set()
    ends = time.monotonic() + 60
    while not track.problem:
        assert time.monotonic() < ends
        time.sleep(0.02)
    assert not track.finish(timeout=1.5)
    assert time.monotonic() - begun < 300  # of the ten minutes that are given to one that answers with failures
    log.path.unlink()
    folder = track.folder
    line = json.loads((folder / "line.json").read_text(encoding="utf-8"))
    line |= {"uri": place.uri, "artifact_root": place.artifact_root}  # it comes back, here as another
    (folder / "line.json").write_text(json.dumps(line), encoding="utf-8")
    track._lock.close()  # as the end of its process does

    track = tracker(place)
    track.start_line("next")
    assert track.finish(timeout=60)
    found = runs(place, "line")
    assert (found["demo"].info.status, found["pretrain"].info.status) == ("FINISHED", "FINISHED")
    assert [p[0] for p in curve(place, found["pretrain"].info.run_id, "loss")] == list(range(100))
    assert found["demo"].data.params == {"lr": "1"}
    assert not folder.exists()


def test_another_living_process_s_outbox_is_left_alone(place):
    other = tracker(place)
    other.start_line("other")
    track = tracker(place)
    track.start_line("mine")
    assert track.finish(timeout=60)
    assert other.folder.exists()
    assert runs(place, "line")["mine"].info.status == "FINISHED"
    assert other.finish(timeout=60)
    assert {r.info.status for r in runs(place, "line").values()} == {"FINISHED"}


def test_a_delivered_folder_is_never_found_half_removed(place, tmp_path, monkeypatch):
    """Another process looks for what was left at each moment of the removal."""
    removed = []

    def rmtree(folder, **kw):
        for path in sorted(folder.iterdir(), key=lambda p: p.name != "lock"):  # the lock first, the worst order
            path.unlink()
            removed.append(path.name)
            assert not list(place.state.glob("*/line.json"))
        folder.rmdir()

    monkeypatch.setattr(sender.shutil, "rmtree", rmtree)
    track = tracker(place)
    track.start_line("demo")
    assert track.finish(timeout=60)
    assert "lock" in removed
    assert not track.folder.exists()
    assert set(runs(place, "line")) == {"demo"}


def test_a_folder_that_goes_while_it_is_looked_at_is_passed_over(tmp_path, caplog):
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "line.json").write_text("{}", encoding="utf-8")
    assert sender.left_behind(tmp_path, tmp_path / "own") == []  # its lock is gone already
    assert sorted(p.name for p in (tmp_path / "gone").iterdir()) == ["line.json"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "lock").touch()
    (tmp_path / "broken" / "line.json").write_text("{no JSON", encoding="utf-8")
    assert sender.left_behind(tmp_path, tmp_path / "own") == []
    assert [r.args[0].name for r in caplog.records] == ["broken"]
    assert sender.claim(tmp_path / "broken") is not None  # not held any longer


def test_an_mlflow_that_only_fails_is_given_up_before_the_time(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracker_module, "GIVE_UP_SECONDS", 1.0)
    track = Tracker(Place("http://127.0.0.1:9", None, place.state), "line", system_seconds=None)
    track.start_line("demo")
    begun = time.monotonic()
    assert not track.finish(timeout=600)
    assert time.monotonic() - begun < 120 and track.problem
    track._lock.close()


def test_what_mlflow_has_not_got_is_said(place, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    track = Tracker(Place("http://127.0.0.1:9", None, place.state), "line", system_seconds=None)
    track.start_line("demo", {"lr": 1})
    track.stage("pretrain", "f1").finish("FINISHED", {"loss": 2.5})
    assert not track.finish(timeout=1)
    said = track.undelivered()
    assert "http://127.0.0.1:9 has not got 2 runs" in said and "7 records" in said
    assert str(track.folder) in said and "next run" in said
    track._lock.close()
