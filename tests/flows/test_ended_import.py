"""An import that is ended by a signal leaves nothing; what a killed one left is removed by the next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.interop import huggingface
from tests.files import ROOT

SLOW = """
import runpy, sys, time
from pathlib import Path
import model.interop.convert as convert
marker = Path(sys.argv.pop())
def import_model(source, target):
    (target / "model.safetensors").write_bytes(b"x" * 1000)
    marker.write_text("ready", encoding="utf-8")
    time.sleep(600)
convert.import_model = import_model
runpy.run_module("flows", run_name="__main__")
"""


def begin(tmp_path: Path, *arguments: str) -> subprocess.Popen:
    """An import that hangs once it has begun to write."""
    (tmp_path / "theirs").mkdir(exist_ok=True)
    ready = tmp_path / "ready"
    ready.unlink(missing_ok=True)
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    variables = os.environ | {"TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)}
    code = [sys.executable, "-c", SLOW, "import", str(tmp_path / "theirs"), *arguments, str(ready)]
    process = subprocess.Popen(code, cwd=tmp_path, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not ready.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        signal.sigtimedwait([], 0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_import_that_is_ended_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = begin(tmp_path, "--out", "new/folder/ours", "--name", "a")
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    (tmp_path / "ready").unlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scratch", "theirs"]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_what_a_killed_import_left_is_removed_by_the_next_but_not_what_another_builds(tmp_path: Path) -> None:
    killed = begin(tmp_path, "--out", "ours")
    killed.kill()
    killed.wait()
    alive = begin(tmp_path, "--out", "ours")  # has removed what was left
    (folder,) = tmp_path.glob(".ours*")
    huggingface._remove_dead(tmp_path / "ours")
    assert folder.is_dir()
    alive.terminate()
    alive.wait(60)
    assert list(tmp_path.glob(".ours*")) == []
