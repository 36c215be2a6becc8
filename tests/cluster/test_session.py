"""The one owner of Ray: started once, in a thread that lives as long as Ray must."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from tiny_stage import Config, stage

from cluster import ray_local
from cluster.data.streaming import gather
from cluster.errors import UserError
from cluster.ray_watch import Watch
from cluster.session import ClusterConfig, Session
from cluster.stage import Hooks, Step, Surroundings, Workspace, run_step
from cluster.store.artifact import Artifacts
from tests.given_summary import Given


class Slow(Session):
    """A session whose start waits until it may, and fails as often as it is told."""

    def __init__(self, failures: int = 0):
        super().__init__()
        self.may, self.starts, self.failures = threading.Event(), 0, failures

    def _start(self) -> None:
        self.starts += 1
        self.may.wait(60)
        if self.starts <= self.failures:
            raise RuntimeError("no room")


def test_ray_is_started_once_however_often_and_from_wherever_it_is_asked_for() -> None:
    session = Slow()
    session.may.set()
    session.start()
    asked = [threading.Thread(target=session.ensure) for _ in range(5)]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join()
    assert session.ensure() is session and session.starts == 1
    session.close()


def test_a_start_that_failed_raises_and_the_next_call_tries_again() -> None:
    session = Slow(failures=1)
    session.may.set()
    with pytest.raises(ConnectionError, match="did not start on this machine: no room"):
        session.ensure()
    assert session.ensure() is session and session.starts == 2
    session.close()


def test_a_start_that_failed_leaves_nothing_of_ray_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray leaves its head and its raylet running where it waits in vain for the one to know of the other."""
    program = tmp_path / "ray" / "gcs_server"
    program.parent.mkdir()
    program.symlink_to(shutil.which("sleep") or "sleep")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(__file__=str(tmp_path / "ray" / "__init__.py")))

    class Failing(Session):
        def _start(self) -> None:
            for words in ([str(program), "600"], ["sleep", "600"]):
                started.append(subprocess.Popen(words))
            raise RuntimeError("timed out during startup")

    started: list[subprocess.Popen[bytes]] = [subprocess.Popen([str(program), "600"])]
    with pytest.raises(ConnectionError, match="timed out"):
        Failing().ensure()
    before, of_ray, other = started
    assert of_ray.wait(60) == -signal.SIGKILL
    assert before.poll() is None and other.poll() is None
    for one in (before, other):
        one.kill()
        one.wait()


def test_the_patience_with_a_head_that_has_gone_is_this_process_s_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else Ray's C++ ends the process a minute later, when another Ray has long taken the place of the lost one."""
    import ray._raylet

    (name,) = ray_local.OURS
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    told: list[str | None] = []
    monkeypatch.setattr(ray._raylet, "Config", SimpleNamespace(initialize=lambda _: told.append(os.environ.get(name))))
    with ray_local.starting():
        assert name not in os.environ, "what Ray starts here would look for its head as long"
    assert told == [str(24 * 3600)]


def test_a_ray_that_was_lost_between_two_stages_is_replaced_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.worker._global_node", SimpleNamespace(kill_all_processes=lambda **_: None))
    session, notes = Slow(), []
    session.may.set()
    session.ensure(note=notes.append)
    with subprocess.Popen(["sleep", "600"]) as gcs:
        session._watch = Watch({"gcs_server": gcs})
        gcs.kill()
        gcs.wait()
        session.ensure(note=notes.append)
    assert session.starts == 2 and len(notes) == 1
    assert re.fullmatch(r"Ray's GCS .* was ended by SIGKILL .*\. Another Ray takes its place\.", notes[0])
    session.ensure(note=notes.append)
    assert len(notes) == 1
    session.close()


def test_what_is_left_of_a_ray_that_nobody_missed_ends_with_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its agents outlive a head that has gone: Ray's own end asks that head in vain."""
    ended: list[dict[str, bool]] = []
    monkeypatch.setattr(
        "ray._private.worker._global_node", SimpleNamespace(kill_all_processes=lambda **how: ended.append(how))
    )
    session = Slow()
    session.may.set()
    session.ensure()
    code = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True); input()"
    raylet = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    with raylet, subprocess.Popen(["sleep", "600"]) as gcs:
        assert raylet.stdout is not None
        agent = psutil.Process(int(raylet.stdout.readline()))
        session._watch = Watch({"raylet": raylet, "gcs_server": gcs})
        gcs.kill()
        gcs.wait()
        session.close()
        assert ended == [{"check_alive": False, "allow_graceful": False}]
        ends = time.monotonic() + 60
        while agent.is_running() and agent.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < ends
            time.sleep(0.01)
        raylet.kill()
    assert session._watch is None


def test_a_stop_while_ray_starts_is_not_waited_for() -> None:
    session = Slow()
    asked = iter([False, True])
    assert session.ensure(lambda: next(asked)) is None
    session.may.set()
    assert session.ensure() is session and session.starts == 1
    session.close()


def test_the_thread_that_started_ray_lives_until_close_since_ray_would_die_with_it() -> None:
    session = Slow()
    session.may.set()
    session.ensure()
    thread = session._thread
    assert thread is not None and thread.is_alive()
    session.close()
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("config", "cluster", "expected"),
    [
        ({}, {"CPU": 8.0}, (1, False, 8.0)),
        ({}, {"CPU": 8.0, "GPU": 2.0}, (2, True, 4.0)),
        ({}, {"CPU": 8.0, "GPU": 1.0}, (1, True, 8.0)),
        ({"workers": 2}, {"CPU": 8.0, "GPU": 2.0}, (2, True, 4.0)),  # as many as there are
        ({"workers": 3}, {"CPU": 8.0, "GPU": 2.0}, "workers = 3, but the cluster has 2 GPUs"),
        ({"workers": 3, "use_gpu": False}, {"CPU": 8.0, "GPU": 2.0}, (3, False, 2.0)),
        ({"workers": 3}, {"CPU": 2.0}, (3, False, 2 / 3)),
        ({"use_gpu": True}, {"CPU": 2.0}, "Ray sees no GPU here"),
        ({"workers": 2, "cpus_per_worker": 4.0}, {"CPU": 8.0}, (2, False, 4.0)),
        (
            {"workers": 2, "cpus_per_worker": 4.5},
            {"CPU": 8.0},
            "2 workers x 4.5 CPUs need 9 CPUs and the cluster has 8",
        ),
        ({"workers": 0, "cpus_per_worker": 3.0}, {"CPU": 8.0}, (0, False, 3.0)),
    ],
)
def test_workers_are_what_is_asked_for_and_the_cluster_has(
    monkeypatch: pytest.MonkeyPatch, config: dict, cluster: dict, expected: tuple | str
) -> None:
    import ray

    session = Session(ClusterConfig.model_validate(config))
    monkeypatch.setattr(session, "ensure", lambda: session)
    monkeypatch.setattr(ray, "cluster_resources", lambda: cluster)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            session.workers()
    else:
        assert session.workers() == pytest.approx(expected)


def test_a_process_that_ends_without_a_close_is_not_held_by_the_thread_of_ray() -> None:
    code = (
        "import threading\n"
        "from cluster.session import Session\n"
        "Session._start = lambda self: threading.Event().wait()\n"
        "Session().start()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_worker_that_died_is_said_once_and_one_that_was_ended_is_not(ray_local: Any, tmp_path: Path) -> None:
    """Ray gives a task whose worker has gone to another one, and says nothing of it to a program."""

    def work(folder: str, number: int) -> int:
        first = Path(folder) / "first"
        if number == 1 and not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def run(ws: Workspace) -> Given:
        @ray_local.remote(num_cpus=0)
        class Ended:
            def here(self) -> bool:
                return True

        ended = Ended.remote()
        assert ray_local.get(ended.here.remote())
        ray_local.kill(ended)
        return Given({"sum": sum(value for _, value in gather((work, (str(tmp_path), n)) for n in range(3)))})

    def notes(text: str) -> list[str]:
        step = Step("count", stage(run, name="count", uses_ray=True), Config(text=text), {})
        run_step(step, Artifacts(tmp_path / "store"), Surroundings(session, hooks=Hooks(note=said.append)))
        return said

    said: list[str] = []
    session = Session()
    session.lost_workers()  # those of other tests, at the same Ray
    (line,) = notes("a")
    assert re.fullmatch(
        r"count: a Ray worker was lost \(process \d+: it was killed or crashed\)\. Its work was done again\.", line
    )
    assert notes("b") == [line]
    session.close()
