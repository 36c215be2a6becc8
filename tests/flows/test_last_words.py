"""A run whose process ends without a word is not without one: another process has its screen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent


def lines(store: Path, kind: str, end: signal.Signals | None) -> tuple[int, str]:
    store.mkdir()
    env = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    with subprocess.Popen(
        [sys.executable, str(HERE / "slow_line.py"), str(store), kind],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    ) as line:
        deadline = time.monotonic() + 240
        while not (store / "at-work").exists():
            assert line.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        if end:
            line.send_signal(end)
        return line.wait(60), line.communicate(timeout=60)[0]


def lives(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_killed_run_says_so_with_the_command_to_go_on_and_ends_what_it_had_started(tmp_path: Path) -> None:
    code, output = lines(tmp_path / "store", "parent", signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert "process has ended without a word: it was killed" in output
    assert output.count("the same command resumes:") == 1 and "run slow" in output.splitlines()[-1]
    child = int((tmp_path / "store" / "child").read_text(encoding="utf-8"))
    deadline = time.monotonic() + 60
    while lives(child):
        assert time.monotonic() < deadline, "what the run has started lives on"
        time.sleep(0.1)


@pytest.mark.parametrize(("kind", "end", "code"), [("polite", signal.SIGINT, 130), ("brief", None, 0)])
def test_one_that_ends_in_order_says_nothing_of_the_kind(
    tmp_path: Path, kind: str, end: signal.Signals | None, code: int
) -> None:
    ended, output = lines(tmp_path / "store", kind, end)
    assert ended == code and "without a word" not in output
