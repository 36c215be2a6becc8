"""Of two runs on one store, one makes it: the other waits, takes over from the dead, and spares the living."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_artifact import FP, build, manifest

from cluster.errors import Stopped
from cluster.stage import Hooks, Surroundings, fingerprint, run_step
from cluster.store import lease as lease_module
from cluster.store import lease_place, open_store
from cluster.store import s3 as s3_module
from cluster.store.artifact import Artifacts
from cluster.store.lease import Lease, lease
from cluster.store.lease_place import Owner, Seen, holds, place_of
from tests.cluster.tiny_stage import Config, Step, stage
from tests.given_summary import Given

KEY = f"work/{FP}/lease.json"
SETUP = """
import sys, time
from pathlib import Path
from cluster.errors import Stopped
from cluster.stage import Hooks, Surroundings, run_step
from cluster.store import lease
from cluster.store.artifact import Artifacts
from tests.cluster.tiny_stage import Config, Step, stage
from tests.given_summary import Given
url, scratch = sys.argv[1], Path(sys.argv[2])
around = Surroundings(hooks=Hooks(progress=lambda done, total, text: print(text, flush=True)))
"""


def never() -> bool:
    return False


def hold(store, stopping=never, say=lambda text: None) -> contextlib.AbstractContextManager[Lease]:
    return lease(store, FP, "pretrain", stopping, say)


def corpus(run) -> Step:
    return Step("corpus", stage(run), Config(), {})


@contextlib.contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen]:
    """A run of its own, killed at the end."""
    root = str(Path(__file__).parents[3])
    command = [sys.executable, "-c", SETUP + code, *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}, encoding="utf-8"
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def line_of(child: subprocess.Popen) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease_module, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease_module, "TAKEN_OVER_SECONDS", 1.0)
    monkeypatch.setattr(lease_module, "POLL_SECONDS", 0.05)


# Of the process that is suspended and has to notice: it takes over nobody.
QUICK = "lease.HEARTBEAT_SECONDS, lease.POLL_SECONDS = 0.1, 0.05\n"


def test_of_two_runs_started_together_one_makes_the_step_and_both_have_it(store_url, tmp_path):
    code = """
def run(ws):
    (scratch / f"made-{time.time()}").touch()
    while not (scratch / "waits").exists(): time.sleep(0.01)
    (ws.out / "text").write_text("a")
    return Given()
def progress(done, total, text):
    print(text, flush=True)
    (scratch / "waits").touch()
around = Surroundings(hooks=Hooks(progress=progress))
(scratch / f"ready-{time.time()}").touch()
while len(list(scratch.glob("ready-*"))) < 2: time.sleep(0.001)
outcome = run_step(Step("corpus", stage(run), Config(), {}), Artifacts(url), around)
print(outcome.cached, outcome.artifact.manifest.created)
"""
    with process(code, store_url, tmp_path) as one, process(code, store_url, tmp_path) as two:
        outputs = [child.communicate(timeout=120)[0].splitlines() for child in (one, two)]
    assert len(list(tmp_path.glob("made-*"))) == 1
    (makers, waiters) = ([o for o in outputs if len(o) == n] for n in (1, 2))
    made, told, found = makers[0][0].split(), waiters[0][0], waiters[0][1].split()
    assert (made[0], found[0]) == ("False", "True") and made[1] == found[1]
    assert "made by PID" in told and told.endswith("; waiting")
    assert list(open_store(store_url).list("work")) == []


@pytest.mark.parametrize("stale", [False, True])
def test_whoever_races_for_a_lease_gets_it_alone_and_in_the_end(store_url, quick, monkeypatch, stale):
    racers, rounds = (8, 5) if not store_url.startswith("s3") else (3, 1)
    if not stale or store_url.startswith("s3"):  # where nobody's heart has to have long not beaten
        monkeypatch.setattr(lease_module, "TAKEN_OVER_SECONDS", 600.0)
    store = open_store(store_url)
    if stale:
        store.write(KEY, Owner(nonce="dead").model_dump_json().encode())
    inside, had = [], []

    def work() -> None:
        for _ in range(rounds):
            with hold(store):
                inside.append(1)
                had.append(len(inside))
                time.sleep(0.01)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(racers)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert had == [1] * (racers * rounds)
    assert list(store.list()) == []


@pytest.mark.parametrize("stale", [False, True])
def test_on_a_server_that_lets_all_writers_through_one_has_the_lease(s3_url, monkeypatch, stale):
    """Each passes its looks and the condition before any lease is there: the worst a server can do."""
    store = open_store(f"{s3_url}/{uuid.uuid4().hex}")
    if stale:
        store.write(KEY, Owner(nonce="dead").model_dump_json().encode())
    barrier, real = threading.Barrier(3), s3_module.S3Store.write

    def all_at_once(self, key, data, *, if_absent=False):
        if key.endswith("lease.json"):
            barrier.wait()
            return real(self, key, data)
        return real(self, key, data, if_absent=if_absent)

    monkeypatch.setattr(s3_module.S3Store, "write", all_at_once)
    taken = []

    def work() -> None:
        place, mine = place_of(store, FP), Owner(nonce=uuid.uuid4().hex)
        if place.take(mine, place.look()):
            taken.append(mine)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(taken) == 1 and holds(store, FP, taken[0].nonce)
    claims = [e.key for e in store.list(f"work/{FP}/claims")]
    assert claims == [f"work/{FP}/claims/{taken[0].nonce}"]


class Clock:
    """What lease.py takes for `time` where it waits: it goes on by its sleeps alone."""

    def __init__(self, asleep=lambda: None):
        self.now, self.asleep = 0.0, asleep

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.asleep()


def test_an_owner_that_lives_is_never_taken_over_however_long_it_works(store_url, monkeypatch):
    """It is waited for over five times TAKEN_OVER_SECONDS; in each, its heart beats twice."""
    monkeypatch.setattr(lease_module, "HEARTBEAT_SECONDS", 0.02)  # a look's share of what counts as quiet
    monkeypatch.setattr(lease_module, "TAKEN_OVER_SECONDS", 0.08)
    monkeypatch.setattr(lease_module, "POLL_SECONDS", 0.02)
    store, beats, looks = open_store(store_url), threading.Semaphore(0), 0

    def asleep() -> None:
        nonlocal looks
        looks += 1
        if looks % 2 == 0:
            assert beats.acquire(timeout=60)

    with hold(store) as held:
        renew = held._place.renew
        monkeypatch.setattr(held._place, "renew", lambda mine: (renew(mine), beats.release())[0])
        monkeypatch.setattr(lease_module, "time", Clock(asleep))
        with pytest.raises(Stopped), hold(store, lambda: looks >= 20):
            pytest.fail("two owners")
        monkeypatch.undo()
        assert not held.lost() and holds(store, FP, held.nonce)
    with hold(store):
        assert not holds(store, FP, held.nonce)


def test_a_killed_owner_of_this_machine_is_taken_over_at_once(tmp_path):
    code = """
with lease.lease(Artifacts(url).store, sys.argv[3], "pretrain", bool, print):
    print("held", flush=True)
    time.sleep(60)
"""
    with process(code, tmp_path, tmp_path, FP) as child:
        assert line_of(child) == "held"
        child.kill()
        child.wait()
    with hold(open_store(tmp_path), say=lambda text: pytest.fail("it is waited for")):
        pass


def test_a_dead_owner_elsewhere_is_taken_over_when_its_heart_has_long_not_beaten(store_url, quick):
    store = open_store(store_url)
    owner = Owner(nonce="far", host="far", pid=7, machine="another")
    store.write(KEY, owner.model_dump_json().encode())
    store.write(f"work/{FP}/claims/far", b"1")
    told: list[str] = []
    begun = time.monotonic()
    with hold(store, say=told.append) as held:
        assert time.monotonic() - begun > lease_module.TAKEN_OVER_SECONDS
        assert told == ["made by PID 7 on far; waiting"]
        assert holds(store, FP, held.nonce)
        assert not store.stat(f"work/{FP}/claims/far") or not store_url.startswith("s3")


def test_a_suspended_owner_that_comes_back_spares_the_new_ones_checkpoints_and_takes_its_artifact(
    store_url, tmp_path, quick
):
    code = (
        QUICK
        + """
def run(ws):
    print("making", ws.fingerprint, flush=True)
    while not ws.stopping(): time.sleep(0.01)
    ws.checkpoints.clear()
    ws.checkpoints.prune(1)
    (scratch / "state").mkdir()
    ws.checkpoints.save(9, scratch / "state")
    print("spared", (scratch / "state").exists(), flush=True)
    raise Stopped("with a checkpoint")
outcome = run_step(Step("corpus", stage(run), Config(), {}), Artifacts(url), around)
print(outcome.cached, outcome.artifact.summary["who"], flush=True)
"""
    )
    artifacts = Artifacts(store_url)
    with process(code, store_url, tmp_path) as child:
        mark = line_of(child).removeprefix("making ")
        child.send_signal(signal.SIGSTOP)
        with lease(artifacts.store, mark, "corpus", never, lambda text: None) as held:
            checkpoints = artifacts.checkpoints(mark, held.nonce)
            for step in (1, 2):
                checkpoints.save(step, build(tmp_path, {"state": str(step)}))
            child.send_signal(signal.SIGCONT)
            assert line_of(child) == "spared False"
            assert checkpoints.steps() == [1, 2]
            assert "made by PID" in line_of(child)
            made = manifest(kind="corpus", stage="corpus", fingerprint=mark, summary={"who": "new"})
            artifacts.publish(made, build(tmp_path, {"text": "a"}))
            checkpoints.clear()
        assert line_of(child) == "True new"
    assert artifacts.store.stat(f"work/{mark}/lease.json") is None


def test_a_stop_ends_the_wait_and_nothing_is_touched(store_url, tmp_path):
    """Not even by force: another's checkpoints are cleared by whoever holds the lease."""
    artifacts = Artifacts(store_url)
    mark = fingerprint(corpus(lambda ws: {}))
    told: list[str] = []
    with lease(artifacts.store, mark, "corpus", never, lambda text: None) as held:
        artifacts.checkpoints(mark, held.nonce).save(1, build(tmp_path, {"state": "1"}))
        before = [e.key for e in artifacts.store.list()]
        with pytest.raises(Stopped, match=f"corpus was not begun: it waited for PID {os.getpid()} on "):
            hooks = Hooks(progress=lambda done, total, text: told.append(text), stopping=lambda: bool(told))
            run_step(corpus(lambda ws: pytest.fail("made")), artifacts, Surroundings(hooks=hooks), force=True)
        assert [e.key for e in artifacts.store.list()] == before
        assert not held.lost()


def test_who_waits_says_so_once_and_then_now_and_then(tmp_path, monkeypatch, quick):
    store = open_store(tmp_path)
    monkeypatch.setattr(lease_module, "TAKEN_OVER_SECONDS", 600.0)
    for seconds, times in ((60.0, 1), (0.25, 4)):
        monkeypatch.setattr(lease_module, "SAY_SECONDS", seconds)
        monkeypatch.setattr(lease_module, "time", clock := Clock())
        told: list[str] = []
        with hold(store), pytest.raises(Stopped), hold(store, lambda: clock.now >= 0.9, told.append):
            pass
        assert len(told) == times


def test_what_is_cached_takes_no_lease(store_url, monkeypatch):
    artifacts = Artifacts(store_url)
    run_step(corpus(lambda ws: Given()), artifacts)
    monkeypatch.setattr("cluster.stage.lease", lambda *a: pytest.fail("a lease was taken"))
    assert run_step(corpus(lambda ws: Given()), artifacts).cached


def test_a_lease_is_given_back_when_the_work_fails(store_url):
    store = open_store(store_url)
    with pytest.raises(RuntimeError, match="disk full"), hold(store):
        assert json.loads(store.read(KEY))["pid"] == os.getpid()
        raise RuntimeError("disk full")
    assert list(store.list()) == []


@pytest.mark.parametrize(
    "lease",
    [
        b'{"nonce": 3',
        b"[]",
        b'{"nonce": "../x"}',
        b'{"since": "0001-01-01T00:00:00+23:00"}',
        b'{"since": "9999-12-31"}',
    ],
)
def test_an_unreadable_lease_is_taken_over(store_url, quick, lease):
    store = open_store(store_url)
    store.write(KEY, lease)
    seen = place_of(store, FP).look()
    assert seen is not None and "on an unknown host" in str(seen.owner)  # as those who wait for it are told
    with hold(store) as held:
        assert holds(store, FP, held.nonce)


def test_what_is_not_ones_own_is_never_given_back(store_url):
    store = open_store(store_url)
    place, old, new = place_of(store, FP), Owner(nonce="old"), Owner(nonce="new")
    assert place.take(old, None)
    seen = place.look()
    assert place_of(store, FP).take(new, seen)
    assert not place.renew(old)
    place.leave(old)
    assert holds(store, FP, "new")
    assert not place_of(store, FP).take(old, seen)  # as it was seen, it is no more


def test_two_that_look_at_once_do_not_take_each_other_for_the_owner(tmp_path):
    store = open_store(tmp_path)
    store.write(KEY, Owner.this_process("pretrain").model_dump_json().encode())  # which never locked it
    with (tmp_path / KEY).open("rb") as another:
        assert lease_place._unlocked(another.fileno())
        seen = place_of(store, FP).look()
    assert seen is not None and seen.dead


def test_time_in_which_the_observer_slept_itself_does_not_count(monkeypatch):
    """Both were suspended: the one that wakes first must not take over before the other can show that it lives."""
    clock = Clock()

    class Place:
        looks = 0

        def look(self) -> Seen:
            self.looks += 1
            if self.looks == 3:
                clock.now += 10_000
            return Seen(Owner(nonce="other"), "beat" if self.looks < 6 else "another beat", False)

        def take(self, mine, seen) -> bool:
            taken.append(clock.now)
            return True

    taken: list[float] = []
    monkeypatch.setattr(lease_module, "time", clock)
    lease_module._acquire(Place(), Owner(), never, lambda text: None)  # type: ignore[arg-type]
    assert taken[0] > 10_000 + lease_module.TAKEN_OVER_SECONDS
