"""Whoever reads a command's output may leave, or may never have been there: the work goes on, the command is quiet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.streams import Outgoing, reader_left
from tests.cluster.tiny_mlflow import sqlite_place

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
LINE = """
import sys
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
        Outgoing(full, whatever=True).flush()
