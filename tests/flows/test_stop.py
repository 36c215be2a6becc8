"""Signals: Ctrl-C reaches the whole process group of a terminal, as here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.prefect_server import EmbeddedServer
from flows.stop import StopFlag

HERE = Path(__file__).parent


class Started:
    """slow_line.py in a process group of its own, at work, with a list of its children."""

    def __init__(self, store: Path, kind: str, api: str = ""):
        store.mkdir()
        env = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "PREFECT_API_URL": api}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "slow_line.py"), str(store), kind],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            encoding="utf-8",
        )
        self.store, self.children = store, []
        self.wait_for("at-work")
        self.children: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)

    def wait_for(self, name: str) -> None:
        """Until the line has made this file."""
        deadline = time.monotonic() + 240
        while not (self.store / name).exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output()
            time.sleep(0.1)

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def output(self) -> str:
        return self.process.communicate(timeout=60)[0]

    def children_end(self) -> bool:
        _, alive = psutil.wait_procs(self.children, timeout=60)
        return not alive

    def clean(self) -> None:
        for process in [*self.children, psutil.Process(self.process.pid)] if self.process.poll() is None else []:
            process.kill()


@pytest.fixture
def start(tmp_path: Path, prefect_api: str) -> Any:
    """(prefect_api: so that its database is made already.)"""
    started: list[Started] = []

    def begin(kind: str, api: str = "") -> Started:
        started.append(Started(tmp_path / "store", kind, api))
        return started[-1]

    yield begin
    for one in started:
        one.clean()


def test_ctrl_c_ends_at_the_next_step_with_the_command_to_go_on(start: Any) -> None:
    line = start("polite")
    assert line.children, "the embedded Prefect API is a child"
    line.interrupt()
    output = line.output()
    assert line.process.returncode == 130, output
    assert "with a checkpoint" in output and "run slow" in output
    assert "Traceback" not in output
    assert line.children_end()


def test_ctrl_c_twice_ends_at_once_and_leaves_no_process(start: Any, prefect_api: str) -> None:
    line = start("deaf", prefect_api)
    line.interrupt()
    line.wait_for("heard")
    assert line.process.poll() is None
    line.interrupt()
    begun = time.monotonic()
    line.output()
    assert line.process.returncode == 130 and time.monotonic() - begun < 3
    assert line.children_end()


def test_a_killed_run_takes_its_prefect_api_with_it(start: Any) -> None:
    line = start("server")
    assert len(line.children) == 1
    line.process.kill()
    assert line.children_end()
    line.output()


def test_the_flag_is_set_by_either_signal_and_the_old_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        told = []
        with StopFlag(lambda told=told: told.append(1)) as flag:
            assert not flag()
            signal.raise_signal(number)
            assert flag() and flag.exit_code == code and told == [1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_flag_survives_a_library_that_takes_the_signal() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopFlag() as flag:
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the library's handler"))
        assert not flag()  # a stage that looks at it takes the signal back
        signal.raise_signal(signal.SIGTERM)
        assert flag()
    assert signal.getsignal(signal.SIGTERM) == before
    flag()
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_alarm_that_a_library_s_handler_has_set_is_taken_back() -> None:
    """Ray's, which calls ours and would abort the process 3 s later, in the middle of the last checkpoint."""
    with StopFlag() as flag:
        signal.alarm(30)
        signal.raise_signal(signal.SIGTERM)
        assert flag() and signal.alarm(0) == 0


@pytest.mark.parametrize("home", ["/dev/null", "odd"])
def test_the_embedded_api_needs_no_home_of_the_user_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    """A home that can't be written (here: none), and one whose path SQLAlchemy would read as another."""
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    odd = tmp_path / "100% a?b" / "home"
    monkeypatch.setenv("HOME", home if home == "/dev/null" else str(odd))
    server = EmbeddedServer()
    server.start()
    try:
        assert server.wait()
    finally:
        server.stop()
        os.environ.pop("PREFECT_HOME", None)
    if home == "odd":
        assert (odd / ".prefect" / "prefect.db").exists()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["100% a?b", "tmp"]
    else:
        assert list((tmp_path / "tmp").rglob("prefect.db"))


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.SIG_DFL, lambda number, frame: None])
def test_what_was_done_with_a_signal_before_is_done_again(before: Any) -> None:
    kept = signal.signal(signal.SIGTERM, before)
    try:
        with StopFlag() as stop:
            assert not stop() and signal.getsignal(signal.SIGTERM) == stop._handle
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, kept)
