"""The line end to end, as a person runs it: the command in a process of its own, on the real components."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.artifact import Artifacts

pytestmark = pytest.mark.slow
RECIPE = Path(__file__).parent / "recipes" / "tiny.toml"
STEPS = {
    "corpus",
    "filter",
    "tokenizer",
    "pack",
    "pretrain",
    "evaluate-base",
    "instruct",
    "rlhf",
    "evaluate",
    "release",
}


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flows", *arguments]


def environment(prefect_home: Path) -> dict[str, str]:
    drop = ("PREFECT_", "MLFLOW_", "RAY_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
    return {**kept, "PREFECT_HOME": str(prefect_home), "PYTHONPATH": str(RECIPE.parents[2])}


def run(folder: Path, prefect_home: Path, *arguments: str) -> str:
    done = subprocess.run(
        command("run", str(RECIPE), *arguments),
        cwd=folder,
        env=environment(prefect_home),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def manifests(store: str) -> dict[str, str]:
    """Step -> fingerprint of all that is in a store."""
    artifacts = Artifacts(store)
    found = {}
    for entry in artifacts.store.list():
        if entry.key.endswith("/manifest.json") and entry.key.count("/") == 2:
            manifest = json.loads(artifacts.store.read(entry.key))
            found[manifest["name"]] = manifest["fingerprint"]
    return found


def curve(store: Path) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm) of the pretraining, exactly as it was recorded."""
    (events,) = [
        p / "events.jsonl" for p in (store / "model").iterdir() if "pretrain" in (p / "manifest.json").read_text()
    ]
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    points = [(e["step"], e["values"]) for e in lines if e["type"] == "metrics" and "loss" in e["values"]]
    return [(step, values["loss"], values["grad_norm"]) for step, values in points]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, prefect_home: Path) -> Path:
    """A folder in which the whole line has run."""
    folder = tmp_path_factory.mktemp("line")
    run(folder, prefect_home)
    return folder


def test_the_line_makes_every_artifact_and_registers_a_champion(finished: Path) -> None:
    assert set(manifests(str(finished / "store"))) == STEPS
    completed, answered = asked(finished)
    assert isinstance(completed[0], str) and isinstance(answered[0], str)


def asked(folder: Path) -> list[list[str]]:
    """What the champion makes of a text and of a chat, looked up by MLflow alone in a process of its own."""
    code = (
        "import mlflow, json\n"
        "model = mlflow.pyfunc.load_model('models:/tiny@champion')\n"
        "chat = {'messages': [{'role': 'user', 'content': 'What is 3 + 4?'}]}\n"
        "print(json.dumps([model.predict('Return the'), model.predict(chat)]))\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    env["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_hybrid_of_every_mixer_with_experts_goes_through_the_whole_line(tmp_path: Path, prefect_home: Path) -> None:
    parts = {
        "pattern": ["mamba2", "rg_lru", "window", "linear_attention", "h3", "short_conv", "attention"],
        "n_layers": 7,
        "ff_pattern": ["dense", "moe"],
        "window": 16,
        "moe": {"n_experts": 4, "top_k": 2},
        "mamba2": {"d_state": 8, "head_dim": 16},
    }
    toml = {key: json.dumps(value) for key, value in parts.items() if not isinstance(value, dict)}
    toml |= {f"{key}.{k}": str(v) for key, value in parts.items() if isinstance(value, dict) for k, v in value.items()}
    sets = [word for key, value in toml.items() for word in ("--set", f"model.{key}={value}")]
    run(tmp_path, prefect_home, "--set", "cluster.workers=0", *sets)
    assert set(manifests(str(tmp_path / "store"))) == STEPS
    loss = [value for _, value, _ in curve(tmp_path / "store")]
    assert sum(loss[-5:]) / 5 < loss[0] - 0.3
    completed, answered = asked(tmp_path)
    assert isinstance(completed[0], str) and isinstance(answered[0], str)


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
    process = subprocess.Popen(
        command("run", str(RECIPE), "--until", "pretrain"),
        cwd=tmp_path,
        env=environment(prefect_home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    store = tmp_path / "store"
    deadline = time.monotonic() + 300
    while not list(store.glob("work/*/checkpoints/*/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(tree, timeout=10)
    assert not list(store.glob("model/*/manifest.json"))

    run(tmp_path, prefect_home, "--until", "pretrain")
    train = json.loads(next((store / "model").glob("*/train.json")).read_text())
    assert train["resumed_from"] and train["resumed_from"] < 40
    assert curve(store) == curve(finished / "store")
    assert [step for step, *_ in curve(store)] == list(range(1, 41))


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, prefect_home: Path) -> None:
    process = subprocess.Popen(
        command("run", str(RECIPE), "--until", "pretrain", "--set", "train.steps=4000"),
        cwd=tmp_path,
        env=environment(prefect_home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    store = tmp_path / "store"
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
    assert max(steps) == int(stopped.group(1)) < 4000
    (events,) = store.glob(f"work/*/checkpoints/step-*{max(steps)}/events.jsonl")
    assert json.loads(events.read_text().splitlines()[-1])["step"] == max(steps)
