"""Delivery of one outbox, step by step: what is sent when MLflow, a writer or this process misbehaves."""

import json
import os
import time
from pathlib import Path

import pytest
from tiny_mlflow import curve, runs, sqlite_place

from cluster.events import EventLog, read_events
from cluster.tracking import outbox
from cluster.tracking.outbox import Delivery
from cluster.tracking.place import Place, connect

LATE = 1_700_000_000_000  # Unix time in milliseconds


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return sqlite_place(tmp_path)


class Box:
    """An outbox's folder with one run, written by hand."""

    def __init__(self, place: Place, folder: Path, name: str = "demo", live: bool = True, **opening):
        folder.mkdir()
        line = {"uri": place.uri, "experiment": "line", "artifact_root": place.artifact_root}
        (folder / "line.json").write_text(json.dumps(line), encoding="utf-8")
        self.place, self.folder, self.name = place, folder, name
        self.log, self.stage = EventLog(folder / "000-line.jsonl"), EventLog(folder / "000-line.stage")
        opened = {"type": "open", "name": name, "parent": None, "start": LATE, "tags": {}, **opening}
        self.log.append(opened, LATE)
        self.delivery = Delivery(folder, live)

    def close(self) -> None:
        self.log.append({"type": "close", "status": "FINISHED", "end": LATE + 9})

    @property
    def run(self):
        return runs(self.place, "line")[self.name]

    def table(self, name: str) -> dict:
        return json.loads(
            Path(connect(self.place.uri).download_artifacts(self.run.info.run_id, name)).read_text(encoding="utf-8")
        )

    def refused(self) -> list[dict]:
        return [e for _, e in read_events(self.folder / "refused.jsonl")]


def test_a_killed_run_ends_with_its_last_event(place, tmp_path):
    box = Box(place, tmp_path / "box", live=False)
    box.stage.metrics(1, {"loss": 1.0}, LATE + 5000)
    assert box.delivery.pump()
    assert (box.run.info.status, box.run.info.start_time, box.run.info.end_time) == ("KILLED", LATE, LATE + 5000)
    assert box.delivery.finished()


def test_a_run_that_goes_on_is_left_open(place, tmp_path):
    box = Box(place, tmp_path / "box")
    assert not box.delivery.pump()
    assert box.run.info.status == "RUNNING"
    assert not box.delivery.finished()


def test_events_that_are_begun_anew_are_read_from_their_start(place, tmp_path):
    """A stage that runs again truncates its events.jsonl, to which ours is a link."""
    box = Box(place, tmp_path / "box")
    for step in range(5):
        box.stage.metrics(step, {"loss": float(step)})
    box.delivery.pump()
    os.truncate(box.stage.path, 0)
    box.stage.metrics(5, {"loss": 5.0})
    box.close()
    assert box.delivery.pump()
    assert [p[:2] for p in curve(place, box.run.info.run_id, "loss")] == [(s, float(s)) for s in range(6)]


def test_the_run_whose_lease_was_taken_over_is_marked_killed(place, tmp_path):
    client = connect(place.uri)
    experiment = client.create_experiment("line", place.artifact_root)
    tags = {"tokenmill.lease": "a1", "tokenmill.alive": "1"}
    dead = client.create_run(experiment, tags=tags, run_name="dead").info.run_id
    other = client.create_run(experiment, tags={**tags, "tokenmill.lease": "a2"}, run_name="other").info.run_id
    Box(place, tmp_path / "made", "made", took_over="a1").delivery.pump()
    assert (client.get_run(dead).info.status, client.get_run(other).info.status) == ("KILLED", "RUNNING")
    assert client.get_run(dead).info.end_time == 1  # its last sign of life


def test_what_a_lease_names_as_its_owner_is_no_query(place, tmp_path):
    box = Box(place, tmp_path / "box", took_over="' OR 1 = 1 --")
    box.delivery.pump()
    assert box.run.info.status == "RUNNING"


def test_an_open_run_gives_signs_of_life(place, tmp_path, monkeypatch):
    box = Box(place, tmp_path / "box")
    box.delivery.pump()
    first = box.run.data.tags["tokenmill.alive"]
    box.delivery.pump()
    assert box.run.data.tags["tokenmill.alive"] == first  # not at each look
    monkeypatch.setattr(outbox, "ALIVE_EVERY", 0.0)
    time.sleep(0.01)
    box.delivery.pump()
    assert int(box.run.data.tags["tokenmill.alive"]) > int(first)


@pytest.mark.parametrize(("failures", "delivered"), [(outbox.ATTEMPTS - 1, True), (outbox.ATTEMPTS, False)])
def test_a_file_that_the_artifact_store_refuses_is_tried_a_few_times(place, tmp_path, monkeypatch, failures, delivered):
    from mlflow import MlflowClient

    real, tries = MlflowClient.log_text, []

    def log_text(self, *args):
        tries.append(args)
        if len(tries) <= failures:
            raise OSError("no space left on device")
        real(self, *args)

    monkeypatch.setattr(MlflowClient, "log_text", log_text)
    box = Box(place, tmp_path / "box")
    box.log.text("note.md", "x")
    box.log.params({"after": 1})
    box.close()
    for _ in range(outbox.ATTEMPTS - 1):
        with pytest.raises(OSError, match="no space"):
            box.delivery.pump()
    assert box.delivery.pump()
    assert box.run.data.params == {"after": "1"}
    assert len(tries) == outbox.ATTEMPTS
    assert [e["what"]["name"] for e in box.refused()] == ([] if delivered else ["note.md"])


def test_a_table_s_rows_are_told_once_and_other_columns_begin_another_table(place, tmp_path):
    box = Box(place, tmp_path / "box")
    box.log.table("t", ["a"], [[1], [2]])
    box.log.table("t", ["a"], [[2], [3]])  # a restarted worker repeats itself
    box.delivery.pump()
    assert box.table("t.json") == {"columns": ["a"], "data": [[1], [2], [3]]}
    box.log.table("t", ["a", "b"], [[1, 1]])
    box.delivery.pump()
    assert box.table("t.json") == {"columns": ["a", "b"], "data": [[1, 1]]}


def test_more_than_one_request_holds_is_sent_in_several(place, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    real, sizes = MlflowClient.log_batch, []

    def log_batch(self, run_id, metrics, params, tags):
        sizes.append((len(metrics), len(params), len(tags)))
        return real(self, run_id, metrics, params, tags)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    box = Box(place, tmp_path / "box")
    box.log.params({f"p{i}": i for i in range(250)})
    box.log.tags({f"t{i}": i for i in range(250)})
    box.log.metrics(0, {f"m{i}": i for i in range(2100)})
    box.close()
    assert box.delivery.pump()
    assert box.refused() == []
    assert all(params <= 100 and tags <= 100 and sum((m, params, tags)) <= 1000 for m, params, tags in sizes)
    assert len(sizes) == 6
    data = box.run.data
    assert (len(data.params), len(data.metrics)) == (250, 2100)
    assert {f"t{i}" for i in range(250)} <= set(data.tags)


def test_names_and_texts_too_long_for_mlflow_are_cut(place, tmp_path):
    box = Box(place, tmp_path / "box")
    box.log.metrics(0, {"m" * 300: 1.0})
    box.log.params({"p": "x" * 7000})
    box.log.tags({"t": "x" * 9000})
    box.close()
    assert box.delivery.pump()
    assert box.refused() == []
    assert len(next(iter(box.run.data.metrics))) == 250
    assert (len(box.run.data.params["p"]), box.run.data.params["p"][-1]) == (6000, "…")
    assert len(box.run.data.tags["t"]) <= 8000


@pytest.mark.parametrize("gone", ["in the trash", "never there"])
def test_what_is_for_a_run_that_is_gone_is_refused_in_one_piece(place, tmp_path, gone):
    box = Box(place, tmp_path / "box")
    box.delivery.pump()
    run_id = box.run.info.run_id
    if gone == "in the trash":
        connect(place.uri).delete_run(run_id)
    else:
        next(iter(box.delivery._positions.values())).run_id = "0" * 32
    box.log.metrics(0, {f"m{i}": 1.0 for i in range(50)})
    box.close()
    assert box.delivery.pump()
    assert [e["what"]["type"] for e in box.refused()].count("batch") == 1


def test_a_proxy_s_error_page_is_no_refusal(place, tmp_path, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    box = Box(place, tmp_path / "box")
    box.log.params({"p": 1})
    box.close()
    page = MlflowException("API request to endpoint /x failed with error code 400 != 200. Response body: '<html>'")
    page.error_code = "BAD_REQUEST"

    def log_batch(*args):
        raise page

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", log_batch)
        with pytest.raises(MlflowException, match="html"):
            box.delivery.pump()
    assert box.delivery.pump()
    assert box.run.data.params == {"p": "1"}
