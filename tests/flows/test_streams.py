"""Whoever reads a command's output may leave, or may never have been there: the work goes on, the command is quiet."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows.streams import UNREAD, Outgoing, Unhurried, reader_left
from tests.cluster.tiny_mlflow import sqlite_place

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
LINE = """
import sys
import time
from pathlib import Path
from fakes import fake_run
from flows import streams
from flows.cli.run import ending
from flows.quiet import quiet

streams.prepare()
store = Path(sys.argv[1])
store.mkdir()
with quiet(store / "log", lasting=True) as console:
    run = fake_run(store, {"corpus": lambda ws: {}, "train": lambda ws: {}}, console)
    run.found = {}
    for step in run.steps:
        run.execute(step.name)
    from flows import closing
    closing.show(run, console)
print("what the command says after")
(store / "done").touch()
"""


def unread(*command: str, cwd: Path | None = None) -> Any:
    """Runs a command whose stdout is a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            command, stdout=writing, stderr=subprocess.PIPE, cwd=cwd, env=ENV, text=True, timeout=120, encoding="utf-8"
        )
    finally:
        os.close(writing)


def redirected(how: str, *command: str, cwd: Path | None = None) -> Any:
    script = f'exec "$@" {how}'
    return subprocess.run(
        ["bash", "-c", script, "x", *command], capture_output=True, cwd=cwd, env=ENV, text=True, timeout=120,
        encoding="utf-8",
    )  # fmt: skip


@pytest.mark.parametrize("words", [["--help"], ["run", "demo", "--plan", "--until", "pack"], ["models"]])
def test_a_short_command_whose_reader_left_ends_quietly(tmp_path: Path, words: list[str]) -> None:
    sqlite_place(tmp_path)
    done = unread(sys.executable, "-m", "flows", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_whose_reader_left_goes_on_to_its_end(tmp_path: Path) -> None:
    done = unread(sys.executable, "-c", LINE, str(tmp_path / "store"))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "store" / "done").exists() and list((tmp_path / "store" / "train").iterdir())


@pytest.mark.parametrize("how", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full"])
def test_a_run_whose_streams_are_closed_goes_on_to_its_end(tmp_path: Path, how: str) -> None:
    done = redirected(how, sys.executable, "-c", LINE.replace('print("what', '0 and print("what'), str(tmp_path / "s"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s" / "done").exists()


@pytest.mark.parametrize("how", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_wrong_command_with_closed_streams_ends_with_its_code(tmp_path: Path, how: str) -> None:
    done = redirected(how, sys.executable, "-m", "flows", "models", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr


def test_a_short_command_onto_a_full_disk_names_what_is_full(tmp_path: Path) -> None:
    sqlite_place(tmp_path)
    done = redirected(">/dev/full", sys.executable, "-m", "flows", "models", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("Error: stdout: the disk is full.")


def test_only_a_reader_that_left_is_passed_over() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        out = Outgoing(full)
        out.write("x")
        with pytest.raises(OSError, match="No space"):
            out.flush()
        assert not reader_left(out)
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:  # what is in its buffer can be closed there
            os.dup2(nowhere.fileno(), full.fileno())


def test_a_run_does_not_wait_for_a_reader_that_stands_still() -> None:
    """A pipe that nobody reads: 1 MB is written at once, the newest is kept, and what was not shown is said."""
    reading, writing = os.pipe()
    out = Unhurried(os.dup(writing))
    begun = time.monotonic()
    for number in range(20_000):
        out.write(f"line {number:06d} of a screen that is not read at all\n")
        out.flush()
    rest = out.close(0.2)
    assert time.monotonic() - begun < 60  # 3 ms a line
    assert rest.endswith("line 019999 of a screen that is not read at all\n") and len(rest) < 2 * UNREAD
    os.close(writing)
    shown = b""
    while data := os.read(reading, 1 << 16):  # the reader is back: the thread goes on
        shown += data
    lines = shown.decode().splitlines()
    assert lines[0].startswith(("line 000000", "…")) and lines[-1].startswith("line 019999")
    said = [line for line in lines if line.startswith("…")]
    assert sum(int(line.split()[1]) for line in said) + len(lines) - len(said) == 20_000
    os.close(reading)


def test_what_the_screen_did_not_take_is_in_the_log_and_the_run_ends(tmp_path: Path) -> None:
    """`run | (sleep 600)`, with more to show than a pipe holds."""
    chatty = LINE.replace('"train": lambda ws: {}', '"train": lambda ws: run.screen.note("x" * 300_000) or {}')
    reading, writing = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", chatty.replace('print("what', '0 and print("what'), str(tmp_path / "store")],
        stdout=writing, stderr=subprocess.PIPE, env=ENV, text=True, timeout=120, encoding="utf-8",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    log = (tmp_path / "store" / "log").read_text(encoding="utf-8")
    assert "the screen did not take" in log and "✓ train" in log
    os.close(writing)
    os.close(reading)
