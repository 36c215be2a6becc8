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

from flows import last_words

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


def test_a_killed_run_says_so_with_the_command_to_go_on(tmp_path: Path) -> None:
    code, output = lines(tmp_path / "store", "polite", signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert "process has ended without a word: it was killed" in output
    assert output.count("the same command resumes:") == 1 and "run slow" in output.splitlines()[-1]


def test_what_a_killed_run_had_started_ends_after_it() -> None:
    """As Ray's agents, which write their names over their environments and would look for their head for minutes."""
    starts = "import subprocess; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); child.wait()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {starts!r}], start_new_session=True)"
    with (
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as run,
        subprocess.Popen(["sleep", "600"]) as other,
        subprocess.Popen([sys.executable, last_words.__file__, str(run.pid)], stdin=subprocess.PIPE) as beside,
    ):
        assert run.stdout is not None
        child = int(run.stdout.readline())
        assert lives(child)
        beside.communicate(b"words", timeout=60)  # the pipe ends as if the run had
        deadline = time.monotonic() + 60
        while lives(child):
            assert time.monotonic() < deadline, "what the run has started lives on"
            time.sleep(0.1)
        assert lives(other.pid)
        run.kill()
        other.kill()


def test_a_process_with_the_number_of_another_that_has_gone_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "600"]) as one:
        (seen,) = [when for number, when in last_words.descendants(os.getpid()).items() if number == one.pid]
        last_words.end({one.pid: seen - 1})
        assert lives(one.pid)
        last_words.end({one.pid: seen})
        assert one.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize(("kind", "end", "code"), [("polite", signal.SIGINT, 130), ("brief", None, 0)])
def test_one_that_ends_in_order_says_nothing_of_the_kind(
    tmp_path: Path, kind: str, end: signal.Signals | None, code: int
) -> None:
    ended, output = lines(tmp_path / "store", kind, end)
    assert ended == code and "without a word" not in output
