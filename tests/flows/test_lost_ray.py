"""A part of the local Ray is killed in mid-stage: it is said, and a fresh Ray goes on where the recipe lets it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from cluster import ray_watch
from cluster.ray_watch import HeadWatch, RayLost, Watch
from flows.faults import is_infrastructure_fault

HERE = Path(__file__).parent


@contextlib.contextmanager
def started(store: Path, max_failures: int, api: str) -> Iterator[subprocess.Popen[str]]:
    store.mkdir()
    env = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "PREFECT_API_URL": api, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(HERE / "lost_line.py"), str(store), str(max_failures)],
        env={name: value for name, value in env.items() if not name.startswith("RAY_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    ) as line:
        try:
            yield line
        finally:
            line.kill()


def newest(processes: list[psutil.Process], name: str) -> psutil.Process:
    """Ray's part of this name: not that of a start that took too long, nor what the part itself has just forked."""
    found = [p for p in processes if p.name() == name]
    return max((p for p in found if p.ppid() not in {q.pid for q in found}), key=lambda p: p.create_time())


def kill(line: subprocess.Popen[str], part: str, store: Path, stage: str) -> None:
    """kill -9, while the stage is at work in a worker."""
    deadline = time.monotonic() + 240
    while not (store / f"{stage}-at-work").exists():
        assert line.poll() is None and time.monotonic() < deadline, line.communicate()[0]
        time.sleep(0.1)
    processes = psutil.Process(line.pid).children(recursive=True)
    now = {name: newest(processes, name) for name in ("raylet", "gcs_server")}
    rays = [*(p for p in processes if p.name().startswith("ray::")), *now.values()]
    now[part].send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 240
    while left := [p for p in rays if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < deadline, f"what was left of that Ray ends, too: {left}"
        time.sleep(0.1)
    (store / f"{stage}-goes-on").write_text("", encoding="utf-8")  # the next time


@pytest.mark.slow
def test_a_killed_raylet_and_a_killed_gcs_are_replaced_and_the_line_ends_as_if_undisturbed(
    tmp_path: Path, prefect_api: str
) -> None:
    store = tmp_path / "store"
    with started(store, 2, prefect_api) as line:
        kill(line, "raylet", store, "data")
        kill(line, "gcs_server", store, "train")
        output, _ = line.communicate(timeout=300)
    assert line.returncode == 0, output
    said = " ".join(output.split())
    for stage, name in (("data", "raylet"), ("train", "GCS")):
        assert f"✗ {stage} Ray's {name} on this machine, process" in said, output
    assert said.count("was ended by SIGKILL") == said.count("It is tried again.") == 2
    assert "Traceback" not in output
    made = {kind: next((store / kind).glob("*/")) for kind in ("data", "train")}
    assert (made["data"] / "data.txt").read_text(encoding="utf-8") == "[0, 1, 4, 9]"
    lines = [json.loads(one) for one in (made["train"] / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(e["step"], e["values"]["loss"]) for e in lines] == [(step, float(step)) for step in range(1, 7)]
    manifest = json.loads((made["train"] / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["summary"]["resumed_from"] == 2


@pytest.mark.slow
def test_where_no_retry_is_allowed_it_ends_with_a_sentence_and_the_command_to_go_on(
    tmp_path: Path, prefect_api: str
) -> None:
    store = tmp_path / "store"
    with started(store, 0, prefect_api) as line:
        kill(line, "gcs_server", store, "data")
        output, _ = line.communicate(timeout=300)
    assert line.returncode == 1, output
    said = " ".join(output.split())
    assert "Ray's GCS on this machine, process" in said and "was ended by SIGKILL" in said
    assert "the same command resumes: " in said and "run lost" in said
    assert "tried again" not in said and "This is a bug" not in said and "Traceback" not in output


def test_whether_a_lost_ray_is_a_reason_to_try_again_is_the_recipe_s_to_say() -> None:
    assert is_infrastructure_fault(RayLost("Ray's raylet ended.", again=True))
    assert not is_infrastructure_fault(RayLost("Ray's raylet ended.", again=False))


def test_whatever_the_main_thread_waits_for_the_end_of_ray_interrupts_it() -> None:
    with subprocess.Popen(["sleep", "60"]) as raylet, subprocess.Popen(["sleep", "60"]) as other:
        watch = Watch({"raylet": raylet, "monitor": other})
        before = signal.getsignal(signal.SIGURG)
        try:
            other.kill()
            other.wait()
            with watch.during(again=True):
                assert watch.problem() == ""  # of a part that nothing depends on
            begun = time.monotonic()
            said = rf"Ray's raylet on this machine, process {raylet.pid}, was ended by SIGKILL"
            with pytest.raises(RayLost, match=said), watch.during(again=True):
                raylet.kill()
                time.sleep(60)
            assert time.monotonic() - begun < 10
            with pytest.raises(RayLost), watch.during(again=True):
                raise ValueError("what comes of it")
            assert signal.getsignal(signal.SIGURG) == before
        finally:
            watch.stop()
            raylet.kill()


def test_the_end_of_a_process_is_seen_at_once_and_not_at_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's C++ ends the driver at its next read of the lost raylet's shared memory."""
    monkeypatch.setattr(ray_watch, "LOOK_SECONDS", 600.0)
    with subprocess.Popen(["sleep", "600"]) as gcs:
        watch = Watch({"gcs_server": gcs})
        with pytest.raises(RayLost, match="GCS"), watch.during(again=True):
            gcs.kill()
            time.sleep(60)
        watch.stop()


def test_a_head_that_lives_on_without_listening_is_lost_and_one_that_is_held_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Ray's GCS after SIGTERM; a held process's kernel goes on taking connections."""
    monkeypatch.setattr(ray_watch, "DEAF_SECONDS", 2.0)
    monkeypatch.setattr(ray_watch, "CONNECT_SECONDS", 0.5)
    with subprocess.Popen(["sleep", "600"]) as gcs:
        with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
            watch = Watch({"gcs_server": gcs}, head=listening.getsockname())
            with watch.during(again=True):
                time.sleep(4)
            assert watch.settled() == ""
        assert "does not listen" in watch.settled(), "before a stage begins on it"
        said = f"Ray's GCS on this machine, process {gcs.pid}, does not listen any more"
        with pytest.raises(RayLost, match=said), watch.during(again=True):
            time.sleep(60)
        watch.stop()
        gcs.kill()


def test_an_interrupt_waits_while_a_lock_of_the_whole_process_is_held(tmp_path: Path) -> None:
    """One that came within an import kept the lock of all imports, and every other thread waited for it for ever."""
    (tmp_path / "slow_to_import.py").write_text(
        "import time\nfor _ in range(30):\n    time.sleep(0.1)\nwhole = True\n", encoding="utf-8"
    )
    code = f"""
import subprocess, sys
from cluster import ray_watch
ray_watch.AGAIN_SECONDS = 0.2
sys.path.insert(0, {str(tmp_path)!r})
raylet = subprocess.Popen(["sleep", "60"])
try:
    with ray_watch.Watch({{"raylet": raylet}}).during(again=True):
        raylet.kill()
        import slow_to_import
        print("whole", slow_to_import.whole)
        import time
        time.sleep(60)
except ray_watch.RayLost:
    print("lost")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert done.stdout.split() == ["whole", "True", "lost"], done.stderr


STUCK = """
import subprocess, time
from cluster import ray_watch
ray_watch.STUCK_SECONDS = 1.0
raylet = subprocess.Popen(["sleep", "60"])
with ray_watch.Watch({"raylet": raylet}).during(again=True):
    raylet.kill()
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            print("not heard", flush=True)
"""
BURIED = """
import time
from cluster.ray_watch import ends_within
with ends_within(60, "in time"):
    pass
with ends_within(1, "Ray's GCS ended."):
    time.sleep(60)
"""


@pytest.mark.parametrize("code", [STUCK, BURIED])
def test_a_process_in_a_call_that_nothing_interrupts_is_ended(code: str) -> None:
    """Ray's own client waits for its head for as long as it is told to, and hears no signal meanwhile."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=50)
    assert done.returncode == 1 and "a call that nothing interrupts, and is ended" in done.stderr


def test_a_joined_cluster_whose_head_goes_away_is_lost_and_one_that_comes_back_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The watch's clock goes on as the test says."""
    clock, looks = SimpleNamespace(now=0.0, monotonic=lambda: clock.now), threading.Semaphore(0)
    see = HeadWatch._see
    monkeypatch.setattr(ray_watch, "time", clock)
    monkeypatch.setattr(ray_watch, "LOOK_SECONDS", 0.05)

    def looked(watch: HeadWatch) -> str:
        before, problem = watch._next, see(watch)
        if watch._next != before:
            looks.release()
        return problem

    monkeypatch.setattr(HeadWatch, "_see", looked)

    def later(seconds: float) -> None:
        """The next look is in so many seconds; and the one after that finds that it was not too early."""
        for wait in (seconds, ray_watch.CONNECT_SECONDS):
            clock.now += wait
            assert looks.acquire(timeout=60)

    with socket.create_server(("127.0.0.1", 0), backlog=100) as head:
        port = head.getsockname()[1]
        watch = HeadWatch("127.0.0.1", port)
        assert looks.acquire(timeout=60)
        with watch.during(again=False):
            later(100)
    later(20)
    with socket.create_server(("127.0.0.1", port), backlog=100):
        later(20)
        assert watch.problem() == ""
    later(20)
    assert watch.problem() == ""
    said = f"The head of the Ray cluster at 127.0.0.1:{port} has not answered for 30 s"
    with pytest.raises(RayLost, match=said) as raised, watch.during(again=False):
        clock.now += 20
        time.sleep(60)
    assert not is_infrastructure_fault(raised.value)
    watch.stop()
    other = HeadWatch("127.0.0.1", port)
    with pytest.raises(RayLost, match="does not answer"), other.during(again=False):
        raise ConnectionError("what comes of it, before it is known")
    other.stop()


def test_a_ray_that_ends_while_nobody_needs_it_is_put_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its C++ would end the process in the middle of a stage that has nothing to do with it."""
    monkeypatch.setattr(ray_watch, "IDLE_SECONDS", 1.0)
    put_away = threading.Event()
    with subprocess.Popen(["sleep", "60"]) as raylet:
        watch = Watch({"raylet": raylet}, put_away.set)
        raylet.kill()
        assert put_away.wait(60)
        with pytest.raises(RayLost), watch.during(again=True):
            pytest.fail("nothing is begun on it")
        watch.stop()
