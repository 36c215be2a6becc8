"""The line end to end, as a person runs it: the command in a process of its own, on the real components."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.listening import is_loopback, listening
from tests.whole_line import RECIPE, STEPS, asked, command, curve, environment, manifests, run, with_data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def heard() -> set[tuple[str, str]]:
    """What listened while the whole line ran with two workers: (address, command)."""
    return set()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, prefect_home: Path, heard: set[tuple[str, str]]) -> Path:
    """A folder in which the whole line has run."""
    folder = tmp_path_factory.mktemp("line")
    with listening() as sockets:
        run(folder, prefect_home)
    heard |= sockets
    return folder


def test_the_line_makes_every_artifact_and_registers_a_champion(finished: Path) -> None:
    assert set(manifests(str(finished / "store"))) == STEPS
    completed, answered = asked(finished)
    assert isinstance(completed[0], str) and isinstance(answered[0], str)


def test_all_that_the_line_starts_listens_on_loopback_alone(finished: Path, heard: set[tuple[str, str]]) -> None:
    for part in ("gcs_server", "raylet", "prefect_server.py", "flows run", "RayTrainWorker", "DashboardAgent"):
        assert any(part in command for _, command in heard), f"{part} was not looked at"
    assert [one for one in heard if not is_loopback(one[0])] == []


def test_a_second_run_finds_everything_cached(finished: Path, prefect_home: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (finished / "store").rglob("manifest.json")}
    output = run(finished, prefect_home)
    after = {p: p.stat().st_mtime_ns for p in (finished / "store").rglob("manifest.json")}
    assert before == after
    assert output.count("cached") >= len(STEPS)


def test_the_same_recipe_on_s3_has_the_same_fingerprints(
    finished: Path, s3_url: str, tmp_path: Path, prefect_home: Path
) -> None:
    url = f"{s3_url}/line"
    run(tmp_path, prefect_home, "--store", url, "--set", "cluster.workers=0")
    assert manifests(url) == manifests(str(finished / "store"))


def test_a_run_killed_in_pretraining_goes_on_to_the_same_curve(
    finished: Path, tmp_path: Path, prefect_home: Path
) -> None:
    """kill -9 of the whole tree after a checkpoint and past it, then the same command."""
    store = with_data(tmp_path, finished)
    still = Path(__file__).parent / "standing_still"
    env = environment(prefect_home)
    env |= {"STAND_STILL": f"15:{tmp_path / 'never'}", "PYTHONPATH": f"{still}:{env['PYTHONPATH']}"}
    process = subprocess.Popen(
        command("run", str(RECIPE), "--until", "pretrain"),
        cwd=tmp_path,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not list(store.glob("work/*/checkpoints/*/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.1)
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(tree, timeout=60)
    assert not alive
    assert not list(store.glob("model/*/manifest.json"))

    run(tmp_path, prefect_home, "--until", "pretrain")
    train = json.loads(next((store / "model").glob("*/train.json")).read_text(encoding="utf-8"))
    assert train["resumed_from"] == 10
    assert curve(store) == curve(finished / "store")
    assert [step for step, *_ in curve(store)] == list(range(1, 41))


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(finished: Path, tmp_path: Path, prefect_home: Path) -> None:
    store = with_data(tmp_path, finished)
    process = subprocess.Popen(
        command("run", str(RECIPE), "--until", "pretrain", "--set", "train.steps=40000"),
        cwd=tmp_path,
        env=environment(prefect_home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        encoding="utf-8",
    )
    deadline = time.monotonic() + 300
    while not list(store.glob("work/*/checkpoints/*/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "run" in output and "checkpoint" in output
    stopped = re.search(r"stopped at step (\d+)", " ".join(output.split()))
    assert stopped, output
    steps = [int(p.parent.name.removeprefix("step-")) for p in store.glob("work/*/checkpoints/*/manifest.json")]
    assert max(steps) == int(stopped.group(1)) < 40000
    (events,) = store.glob(f"work/*/checkpoints/step-*{max(steps)}/events.jsonl")
    assert json.loads(events.read_text(encoding="utf-8").splitlines()[-1])["step"] == max(steps)
