"""An imported model through the line, as a person does it: import, instruct by a recipe, release, chat, export."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from tests.cluster.their_chat_model import make_chat_model, write_chats
from tests.cluster.tiny_mlflow import sqlite_place
from tests.whole_line import command, environment, manifests

pytestmark = pytest.mark.slow
RECIPE = """\
name = "tuned"
base = "models:/theirs/1"
[[sources]]
name = "prose"
path = "text.txt"
split = "lines"
[filter.rules]
prose = []
[instruct]
data = ["chats.jsonl"]
replay = 0.25
[instruct.train]
steps = 4
batch_size = 4
seq_len = 128
[rlhf]
tasks = ["generated://arithmetic?n=20&digits=1"]
group_size = 2
heldout_items = 2
max_new_tokens = 4
[rlhf.train]
steps = 1
seq_len = 128
batch_size = 2
[evaluate]
questions = ["What is 3 + 4?"]
sample_tokens = 4
[[evaluate.tasks]]
name = "sums"
kind = "generate"
data = "generated://arithmetic?n=2&digits=1"
max_new_tokens = 4
[release]
metrics = [{ metric = "bpb", mode = "min", max_regression = 5.0 }, { metric = "sums/accuracy", mode = "max" }]
[cluster]
workers = 0
"""


def call(*words: str, typed: str = "") -> str:
    """In this process, which has imported all that a command needs."""
    result = CliRunner().invoke(app, list(words), input=typed)
    assert result.exit_code == 0, result.output
    return result.output


def run(folder: Path, prefect_home: Path) -> str:
    done = subprocess.run(
        command("run", "r.toml"), cwd=folder, env=environment(prefect_home), capture_output=True, text=True,
        timeout=500, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_imported_model_is_instructed_released_asked_and_exported(
    tmp_path: Path, prefect_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sqlite_place(tmp_path)
    make_chat_model(tmp_path / "hub", "Llama 3")
    write_chats(tmp_path / "chats.jsonl")
    words = ["the", "quick", "brown", "fox", "jumps", "over", "that", "lazy", "dog", "and", "reads", "what", "it", "is"]
    lines = [f"{i} {' '.join(words[i % 7 :] + words[: i % 5])}, said {'fox' * (i % 3)} {i}." for i in range(200)]
    (tmp_path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "r.toml").write_text(RECIPE, encoding="utf-8")
    call("import", "hub", "--name", "theirs")
    said = run(tmp_path, prefect_home)
    steps = ["base", "corpus", "filter", "pack", "evaluate-base", "instruct", "rlhf", "evaluate", "release"]
    assert sorted(manifests(str(tmp_path / "store"))) == sorted(steps)
    closing = said.partition("stages in")[2]
    assert "models:/theirs/1: " in closing and "its own chat template" in closing and "4 rows of replayed" in closing
    assert "Gate passed" in said and "chat models:/tuned@champion" in said
    assert {w for line in closing.splitlines() if "gzip -9" in line for w in line.split()} >= {"base", "aligned"}
    version = call("models", "tuned@champion")
    assert "base        models:/theirs/1" in version and "base      model/" in version
    assert "Nothing would run" in call("run", "r.toml", "--set", "cluster.workers=2", "--plan")
    asked = call("chat", "models:/tuned@champion", "--max-tokens", "4", typed="What is 3 + 4?\n/exit\n")
    assert "> " in asked
    call("export", "models:/tuned@champion", "out")
    theirs, back = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("hub", "out"))
    assert back.chat_template == theirs.chat_template
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.model_type == "llama"
    found = (tmp_path / "store" / "model").glob("*/manifest.json")
    [base] = [m for m in (json.loads(p.read_text(encoding="utf-8")) for p in found) if m["stage"] == "base"]
    assert base["config"]["name"] == "models:/theirs/1"
