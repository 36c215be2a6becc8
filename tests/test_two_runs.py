"""Two runs of one recipe on one store, started together: each stage is made once, and both have all of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.whole_line import RECIPE, STEPS, command, environment, manifests

pytestmark = pytest.mark.slow
SMALL = ["cluster.workers=0", "train.steps=10", "instruct.train.steps=4", "rlhf.train.steps=1"]


def race(folder: Path, prefect_home: Path, *arguments: str) -> list[tuple[int, str]]:
    """The exit codes and the outputs of two runs, which share all that two runs of one person share."""
    settings = [word for setting in SMALL for word in ("--set", setting)]
    runs = [
        subprocess.Popen(
            command("run", str(RECIPE), *settings, *arguments),
            cwd=folder,
            env=environment(prefect_home),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        for _ in range(2)
    ]
    try:
        outputs = [run.communicate(timeout=500)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
    return [(run.returncode, output) for run, output in zip(runs, outputs, strict=True)]


def made(output: str) -> list[str]:
    """The steps that a run says it made."""
    return re.findall(r"^\s*✓ (\S+)", output, re.MULTILINE)


def found(output: str) -> list[str]:
    """The steps that a run says it found."""
    return re.findall(r"^\s*= (\S+)", output, re.MULTILINE)


def test_two_runs_started_together_make_each_step_once_and_end_well(tmp_path: Path) -> None:
    results = race(tmp_path, tmp_path / "prefect")
    assert [code for code, _ in results] == [0, 0], "\n\n".join(output for _, output in results)
    both = [step for _, output in results for step in made(output)]
    assert sorted(both) == sorted(STEPS)
    for _, output in results:
        assert set(made(output)) | set(found(output)) == STEPS
    assert set(manifests(str(tmp_path / "store"))) == STEPS
    assert not list((tmp_path / "store").glob("aside/*"))
    assert not list((tmp_path / "store").glob("work/*/lease.json"))
