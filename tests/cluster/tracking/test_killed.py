"""Which run in MLflow is marked KILLED: the one whose lease the store gave to another, whatever the clocks say."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_mlflow import runs, tracker

from cluster.stage import Hooks, Step, Surroundings, fingerprint, run_step
from cluster.store import lease as lease_module
from cluster.store import open_store
from cluster.store.artifact import Artifacts
from cluster.store.lease_place import Owner
from cluster.tracking.place import Place, connect
from tests.cluster.tiny_stage import Config, stage
from tests.given_summary import Given

DAY = 86_400


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease_module, "TAKEN_OVER_SECONDS", 1.0)
    monkeypatch.setattr(lease_module, "POLL_SECONDS", 0.05)


def make(store: str, place: Place, line: str, work: Callable[[], None], say: Callable[[str], None] = print) -> None:
    """One run of the line with one stage, as flows/run.py has it."""
    track = tracker(place)
    track.start_line(line)
    made = []

    def begin(_stage, ws):
        made.append(
            track.stage(f"corpus of {line}", ws.fingerprint, lease=ws.checkpoints.nonce, took_over=ws.took_over)
        )
        made[-1].wait_run_id()
        return made[-1]

    def run(ws):
        work()
        (ws.out / "text").write_text("a", encoding="utf-8")
        return Given()

    hooks = Hooks(begin, lambda done, total, text: say(text))
    run_step(Step("corpus", stage(run), Config(), {}), Artifacts(store), Surroundings(hooks=hooks))
    for one in made:
        one.finish()
    assert track.finish(timeout=60)


def test_the_run_of_an_owner_that_died_is_marked_killed(store_url: str, place: Place) -> None:
    nonce, key = "0123456789abcdef", f"work/{fingerprint(Step('corpus', stage(), Config(), {}))}/lease.json"
    open_store(store_url).write(key, Owner(nonce=nonce, host="elsewhere", machine="m").model_dump_json().encode())
    client = connect(place.uri)
    experiment = client.create_experiment("line", place.artifact_root)
    client.create_run(experiment, tags={"tokenmill.lease": nonce}, run_name="dead")
    make(store_url, place, "next", lambda: None)
    statuses = {name: run.info.status for name, run in runs(place, "line").items()}
    assert statuses == {"dead": "KILLED", "next": "FINISHED", "corpus of next": "FINISHED"}


@pytest.mark.parametrize("jump", [DAY, -DAY])
@pytest.mark.parametrize("shared", [True, False])
def test_a_clock_that_is_set_marks_no_live_run(
    store_url: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: int, shared: bool
) -> None:
    """Two runs of the same work, on one store and on two that have one MLflow; then the second's clock jumps."""
    monkeypatch.setattr(lease_module, "TAKEN_OVER_SECONDS", 600.0)
    monkeypatch.setattr(lease_module, "SAY_SECONDS", 0.1)
    at_work, may_end, waits = threading.Event(), threading.Event(), threading.Semaphore(0)

    def work() -> None:
        at_work.set()
        assert may_end.wait(60)

    first = threading.Thread(target=make, args=(store_url, place, "first", work))
    first.start()
    assert at_work.wait(60)
    real, real_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + jump * 10**9)
    other = store_url if shared else str(tmp_path / "other")
    second = threading.Thread(target=make, args=(other, place, "second", lambda: None, lambda text: waits.release()))
    second.start()
    try:
        if shared:
            for _ in range(3):  # it has looked at the owner again and again
                assert waits.acquire(timeout=60)
        else:
            second.join(60)
        assert runs(place, "line")["corpus of first"].info.status == "RUNNING"
    finally:
        may_end.set()
        first.join(60)
        second.join(60)
    assert {run.info.status for run in runs(place, "line").values()} == {"FINISHED"}
