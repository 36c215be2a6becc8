"""A run of the whole line as a person starts it, and what it left: for test_whole_line.py and test_hybrid_line.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from cluster.store.artifact import Artifacts
from tests.cluster.tiny_mlflow import sqlite_place

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
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def with_data(folder: Path, whole: Path) -> Path:
    """The store of `folder`, with a whole run's data in it and an MLflow beside it: only a training is to come."""
    sqlite_place(folder)
    for manifest in (whole / "store").glob("*/*/manifest.json"):
        if json.loads(manifest.read_text(encoding="utf-8"))["name"] in ("corpus", "filter", "tokenizer", "pack"):
            key = manifest.parent.relative_to(whole)
            shutil.copytree(whole / key, folder / key, copy_function=os.link)
    return folder / "store"


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
        p / "events.jsonl"
        for p in (store / "model").iterdir()
        if "pretrain" in (p / "manifest.json").read_text(encoding="utf-8")
    ]
    lines = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    points = [(e["step"], e["values"]) for e in lines if e["type"] == "metrics" and "loss" in e["values"]]
    return [(step, values["loss"], values["grad_norm"]) for step, values in points]


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
        [sys.executable, "-c", code],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
