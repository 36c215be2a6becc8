"""A Prefect that dies, hangs or was never there delays no work, no Ctrl-C and no ending; what it misses is said."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
# From the work's begin to the end; a Prefect that is waited for costs a minute a request.
AT_ONCE = 31.0


class Door:
    """A TCP proxy in front of Prefect's API that can be shut: `dead` (refused) or `deaf` (accepted, never answered)."""

    def __init__(self, api: str):
        parts = urlsplit(api)
        self._target, self._path = (parts.hostname, parts.port), parts.path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.mode = "open"
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}{self._path}"
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self, mode: str) -> None:
        self.mode = mode
        if mode == "dead":
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def open_again(self) -> None:
        self.mode = "open"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                while self.mode == "deaf":  # held back, and passed on once the door is open
                    time.sleep(0.05)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def door(prefect_api: str) -> Any:
    made = Door(prefect_api)
    yield made
    made.shut("dead")


class Line:
    """slow_line.py in a process of its own, at work, with what it says."""

    def __init__(self, store: Path, kind: str, api: str):
        store.mkdir()
        env = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "PREFECT_API_URL": api}
        self.store = store
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "slow_line.py"), str(store), kind],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 240
        while not (store / "at-work").exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.05)
        self.begun = time.monotonic()

    def end(self) -> tuple[int, str, float]:
        """(exit code, screen, seconds since it was at work)."""
        said = self.process.communicate(timeout=150)[0]
        return self.process.returncode, said, time.monotonic() - self.begun

    def log(self) -> str:
        return (self.store / "line.log").read_text(encoding="utf-8")


@pytest.fixture
def start(tmp_path: Path, prefect_api: str) -> Any:
    """(prefect_api: so that its database is made already.)"""
    lines: list[Line] = []

    def begin(kind: str, api: str = "") -> Line:
        lines.append(Line(tmp_path / f"store-{len(lines)}", kind, api))
        return lines[-1]

    yield begin
    for line in lines:
        if line.process.poll() is None:
            for one in [*psutil.Process(line.process.pid).children(recursive=True), line.process]:
                one.kill()


@pytest.mark.parametrize("mode", ["dead", "deaf"])
def test_an_api_that_goes_away_in_the_middle_delays_nothing_and_is_said(start: Any, door: Door, mode: str) -> None:
    line = start("shown", door.url)
    door.shut(mode)
    code, said, seconds = line.end()
    assert code == 0, said + line.log()
    assert seconds < AT_ONCE
    assert list((line.store / "evaluate").iterdir()), "the work is whole"
    words = " ".join(said.split())
    assert re.search(
        r"Prefect at \S+ has not been shown all of this run \(.+\): .+\. None of the work is missing", words
    )


def test_an_api_that_hangs_for_a_while_is_shown_everything(start: Any, door: Door) -> None:
    line = start("patient", door.url)
    door.shut("deaf")
    time.sleep(1)  # the next update of the progress is under way
    door.open_again()
    code, said, _ = line.end()
    assert code == 0 and "has not been shown" not in said, said + line.log()
    (mine,) = httpx.post(f"{door.url}/flow_runs/filter", json={"limit": 1, "sort": "START_TIME_DESC"}).json()
    tasks = httpx.post(f"{door.url}/task_runs/filter", json={"flow_runs": {"id": {"any_": [mine["id"]]}}}).json()
    assert mine["state"]["type"] == "COMPLETED"
    assert {task["name"]: task["state"]["type"] for task in tasks} == dict.fromkeys(
        ("corpus", "train", "evaluate"), "COMPLETED"
    )


@pytest.mark.parametrize("mode", ["dead", "deaf"])
def test_an_api_that_was_never_there_delays_nothing_and_is_said(start: Any, door: Door, mode: str) -> None:
    door.shut(mode)
    line = start("refused" if mode == "dead" else "brief", door.url)
    code, said, seconds = line.end()
    assert code == 0, said + line.log()
    assert seconds < AT_ONCE
    words = " ".join(said.split())
    assert "has not been shown all of this run" in words
    assert "the states of corpus, train, evaluate" in words
    if mode == "dead":
        assert f"Prefect does not answer at {door.url}: the run goes on" in words


@pytest.mark.parametrize("mode", ["dead", "deaf"])
def test_ctrl_c_is_obeyed_within_seconds_whatever_prefect_does(start: Any, door: Door, mode: str) -> None:
    line = start("shown", door.url)
    door.shut(mode)
    time.sleep(1)  # the next update of the progress is under way
    begun = time.monotonic()
    os.killpg(line.process.pid, signal.SIGINT)
    code, said, _ = line.end()
    assert code == 130, said + line.log()
    assert time.monotonic() - begun < 10
    assert "with a checkpoint" in said and "run slow" in said and "has not been shown all" in said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_embedded_api_may_die_or_stand_still(start: Any, number: int) -> None:
    line = start("shown")
    children = psutil.Process(line.process.pid).children()
    (server,) = (child for child in children if any("prefect_server" in part for part in child.cmdline()))
    server.send_signal(number)
    code, said, seconds = line.end()
    assert code == 0, said + line.log()
    assert seconds < AT_ONCE
    assert "Prefect's embedded API has not been shown all of this run" in " ".join(said.split())
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
