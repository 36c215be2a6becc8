"""A function on Ray Train workers: its curve, its checkpoints, its errors."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from cluster.errors import UserError
from cluster.session import ClusterConfig, Session
from cluster.stage import Hooks, Stage, Step, Surroundings, run_step
from cluster.store.artifact import Artifacts
from cluster.train.fit import _hold_lines, fit
from cluster.train.worker import Worker
from tests.given_summary import Given


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = 6
    die_at: int = 0
    marker: str = ""
    refuse: bool = False
    note_pid: bool = False


def count(worker: Worker, config: Config) -> dict:
    """Counts to `steps`, a point of the curve each, a checkpoint at every second; dies once where it is told to."""
    if config.refuse:
        raise UserError("the recipe asks for what can't be")
    if config.note_pid:
        Path(config.marker).write_text(str(os.getpid()), encoding="utf-8")
    found = worker.resume()
    for step in range((found[0] if found else 0) + 1, config.steps + 1):
        total = worker.mean({"rank": (float(worker.rank), 1)})
        worker.metrics(step, {"loss": float(step), **total})
        if step % 2 == 0:
            worker.save(step, lambda folder: (folder / "state.txt").write_text("whole", encoding="utf-8"))
        if step == config.die_at and worker.rank == 0 and not Path(config.marker).exists():
            worker.flush()
            Path(config.marker).write_text("died", encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
    return {"seen": worker.recall(config.steps), "resumed_from": found[0] if found else None}


def run(ws: Any) -> Given:
    return Given(fit(ws, count, ws.config))


COUNT = Stage("count", "count", 1, Config, run, Given)


@pytest.fixture(scope="module", autouse=True)
def workers_get_this_file() -> Iterator[None]:
    """Workers can't import a test's module, so its functions travel as they are."""
    from ray import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def go(folder: Path, workers: int = 2, notes: list[str] | None = None, **config: Any) -> Any:
    step = Step(name="count", stage=COUNT, config=Config(**config), inputs={})
    session = Session(ClusterConfig.model_validate({"workers": workers}))
    hooks = Hooks(note=notes.append) if notes is not None else Hooks()
    return run_step(step, Artifacts(folder / "store"), Surroundings(session, hooks=hooks)).artifact


def curve(artifact: Any) -> list[int]:
    return [json.loads(line)["step"] for line in artifact.read("events.jsonl").decode().splitlines()]


@pytest.mark.slow
def test_a_dead_worker_is_restarted_and_its_curve_has_every_step_once(ray_local: Any, tmp_path: Path) -> None:
    notes: list[str] = []
    artifact = go(tmp_path, notes=notes, die_at=5, marker=str(tmp_path / "marker"))
    assert (tmp_path / "marker").exists()
    assert artifact.summary["resumed_from"] == 4
    assert curve(artifact) == [1, 2, 3, 4, 5, 6]
    assert artifact.summary["seen"] == {"loss": 6.0, "rank": 0.5}
    assert artifact.summary["devices"] == 2
    (note,) = notes
    assert re.fullmatch(
        r"count: a training worker was lost( \(rank 0\))?\. The workers are restarted, and go on from "
        r"the checkpoint of step 4\.",
        note,
    )


@pytest.mark.slow
def test_a_users_mistake_on_a_worker_is_raised_as_it_is_and_not_tried_again(ray_local: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^the recipe asks for what can't be$"):
        go(tmp_path, refuse=True)


def test_recall_gives_what_is_on_the_curve_at_a_step() -> None:
    worker = Worker(0, 1, 0, "", "", None)
    worker.events = [
        {"type": "metrics", "step": 0, "values": {"a": 1.0}},
        {"type": "metrics", "step": 0, "values": {"b": 2.0}},
        {"type": "metrics", "step": 1, "values": {"a": 3.0}},
    ]
    assert worker.recall(0) == {"a": 1.0, "b": 2.0}
    means = worker.mean({"x": (6.0, 3), "y": (0.0, 0)})
    assert means["x"] == 2.0 and math.isnan(means["y"]), "of nothing there is no mean: 0 would be one"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_gpu": True}, "sees no GPU"),
        ({"workers": 2, "cpus_per_worker": 2}, "lower workers or cpus_per_worker"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused_before_anything_waits(ray_local: Any, config: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Session(ClusterConfig.model_validate(config)).workers()


def test_no_cluster_at_an_address_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(ClusterConfig.model_validate({"address": "127.0.0.1:1"}))
    monkeypatch.setattr(session, "_start", lambda: (_ for _ in ()).throw(ConnectionError("refused")))
    with pytest.raises(UserError, match=r"address is '127.0.0.1:1', and Ray can't be joined there: refused"):
        session.ensure()
    monkeypatch.setattr(session, "_start", lambda: None)
    assert session.ensure() is session  # the next call tries again


def test_without_workers_this_process_trains_and_says_so(ray_local: Any, tmp_path: Path) -> None:
    artifact = go(tmp_path, workers=0, marker=str(tmp_path / "pid"), note_pid=True)
    assert curve(artifact) == [1, 2, 3, 4, 5, 6]
    assert artifact.summary["devices"] == 1 and artifact.summary["seen"]["rank"] == 0.0
    assert int((tmp_path / "pid").read_text(encoding="utf-8")) == os.getpid()
    with pytest.raises(ValueError, match="the recipe asks for what can't be"):
        go(tmp_path, workers=0, refuse=True)


@pytest.mark.parametrize("held", [0, 2, 4, 6])
def test_the_curve_holds_what_the_checkpoint_has_whatever_of_it_was_sent(tmp_path: Path, held: int) -> None:
    lines = [json.dumps({"step": step}) + "\n" for step in range(1, 7)]
    (tmp_path / "events.jsonl").write_text("".join(lines[:4]), encoding="utf-8")
    log = tmp_path / "log"
    log.write_text("".join(lines[:held]), encoding="utf-8")
    ws: Any = SimpleNamespace(checkpoints=SimpleNamespace(latest=lambda: (4, tmp_path)))
    _hold_lines(log, 4, ws)
    assert log.read_text(encoding="utf-8") == "".join(lines[:4])
