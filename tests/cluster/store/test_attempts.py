"""What a step cost is what all attempts at it cost, also one that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_artifact import FP

from cluster.errors import Stopped
from cluster.stage import Step, Surroundings, run_step
from cluster.store import attempts, open_store
from cluster.store.artifact import Artifacts
from cluster.store.attempts import Attempt
from tests.cluster.tiny_stage import Config, stage
from tests.given_summary import Given


def step(run) -> Step:
    return Step("corpus", stage(run), Config(), {})


def ended(ws) -> Given:
    ws.attempt.devices = 2
    (ws.out / "text").write_text("a", encoding="utf-8")
    attempts.time.now += 2
    return Given({})


def test_a_step_that_was_stopped_and_one_that_failed_add_what_they_cost(store_url, monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(attempts, "time", clock)
    artifacts = Artifacts(store_url)
    for error in (Stopped("asked"), OSError("a disk")):

        def fail(ws, error=error):
            ws.attempt.devices = 3
            clock.now += 5
            raise error

        with pytest.raises(type(error)):
            run_step(step(fail), artifacts, Surroundings())
    manifest = run_step(step(ended), artifacts, Surroundings()).artifact.manifest
    assert (manifest.wall_seconds, manifest.device_seconds) == (5 + 5 + 2, 3 * 10 + 2 * 2)
    assert not list(artifacts.store.list("work")), "what was counted is cleared"
    again = run_step(step(ended), artifacts, Surroundings(), force=True).artifact.manifest
    assert again.wall_seconds == 2, "a run from the start begins to count from nothing"


def test_an_attempt_that_fails_at_once_leaves_nothing(store_url):
    def fail(ws):
        raise OSError("a disk")

    artifacts = Artifacts(store_url)
    with pytest.raises(OSError, match="a disk"):
        run_step(step(fail), artifacts, Surroundings())
    assert not [e.key for e in artifacts.store.list("work") if "attempts" in e.key]


def test_a_killed_attempt_counts_up_to_its_last_tick(tmp_path: Path):
    code = (
        "import json, sys, time\n"
        "from pathlib import Path\n"
        "from cluster.store import attempts, open_store\n"
        "attempts.TICK_SECONDS = 0.1\n"
        "with attempts.Attempt(open_store(sys.argv[1]), sys.argv[2], 'dead') as mine:\n"
        "    mine.devices = 4\n"
        "    said = Path(sys.argv[1], 'work', sys.argv[2], 'attempts', 'dead.json')\n"
        "    while not said.exists() or json.loads(said.read_text())['wall_seconds'] < 0.7:\n"
        "        time.sleep(0.01)\n"
        "    print('there', flush=True)\n"
        "    time.sleep(600)\n"
    )
    url = str(tmp_path / "store")
    killed = subprocess.Popen([sys.executable, "-c", code, url, FP], stdout=subprocess.PIPE)
    assert killed.stdout is not None and killed.stdout.readline()
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    with Attempt(open_store(url), FP, "mine") as mine:
        wall, devices = mine.total()
    assert 0.7 <= wall < 600 and 2.8 <= devices < 4 * wall + 0.01  # milliseconds are kept


def test_a_damaged_record_or_a_store_that_takes_none_ends_no_attempt(tmp_path: Path, monkeypatch):
    store = open_store(str(tmp_path / "store"))
    store.write(f"work/{FP}/attempts/other.json", b"{")
    mine = Attempt(store, FP, "mine")
    with mine:
        assert mine.total()[0] < 60  # its own

    def full(*given, **named):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(store, "write", full)
    mine.record()
