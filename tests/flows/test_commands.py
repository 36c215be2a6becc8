"""The commands that are printed for a person to paste: each works, in a shell, from another folder."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from cluster.stage import Surroundings, run_step
from cluster.store.artifact import Artifacts
from cluster.tracking.place import locate
from flows import closing, commands
from tests.cluster.tiny_mlflow import sqlite_place
from tests.cluster.tiny_model import make_model
from tests.cluster.tiny_release import release_step

ROOT = Path(__file__).parents[2]
ODD = 'it\'s 100% "a?b" #1'


def paste(command: str, folder: Path) -> str:
    """What the command says, typed in another folder."""
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, shell=True, executable="bash", cwd=elsewhere, env=env, capture_output=True, text=True, timeout=120,
        encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = tmp_path / ODD
    made.mkdir()
    monkeypatch.chdir(made)
    return made


def ended(folder: Path, outcomes: dict[str, Any], until: str | None = None) -> Any:
    return SimpleNamespace(
        name="it", source="-my recipe.toml", overrides=("name=it", "store=my store"), until=until, outcomes=outcomes,
        tracker=SimpleNamespace(place=locate("store"), url=lambda run: None), runs={}, log=None, begun=0.0,
        artifacts=SimpleNamespace(store=SimpleNamespace(url="store")),
    )  # fmt: skip


def test_the_commands_of_a_released_chat_model(folder: Path) -> None:
    sqlite_place(folder)
    step = release_step(name="tiny-0.1m")
    made = run_step(step, Artifacts(folder / "store"), Surroundings())
    after = commands.next_commands(ended(folder, {"rlhf": made, "release": made}))
    assert [next(w for w in ("chat", "generate", "models") if f" {w} " in c) for c in after] == [
        "chat", "generate", "models",
    ]  # fmt: skip
    said = [paste(c, folder) for c in after]
    assert said[1].startswith(commands.PROMPT) and "@champion" in said[2]
    assert "/exit" in said[0]


def test_the_commands_of_a_model_that_was_only_pretrained(folder: Path) -> None:
    model = make_model(folder / "store" / "model" / "ab")
    artifact = SimpleNamespace(kind="model", path=lambda verify: Path("store/model/ab"))
    run = ended(folder, {"pretrain": SimpleNamespace(artifact=artifact)})
    (command,) = commands.next_commands(run)  # no chat, and not the same run again
    assert str(model) not in command  # it is quoted
    assert paste(command, folder).startswith(commands.PROMPT)


def test_a_run_until_a_stage_can_be_carried_on_from_anywhere(folder: Path) -> None:
    (folder / "web.jsonl").write_text('{"text": "some words"}\n', encoding="utf-8")
    recipe = 'name = "mine"\n[[sources]]\nname = "web"\npath = "web.jsonl"\n'
    (folder / "-my recipe.toml").write_text(recipe, encoding="utf-8")
    on, plan = commands.next_commands(ended(folder, {}, until="pack"))
    assert plan == f"{on} --plan" and "--until" not in on
    assert "stages would run" in paste(plan, folder)
    whole = commands.again(ended(folder, {}, until="pack"), more=["--plan"])
    assert "it: 4 of 4 stages would run" in paste(whole, folder)


def test_a_prompt_is_the_recipe_s_own_if_it_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.evaluate import summary

    given = ["", "two\nlines", "--flag", "x" * 99, "Twice 2 is", "later"]
    monkeypatch.setattr(summary, "samples", lambda artifact: [{"prompt": p} for p in given])
    run: Any = SimpleNamespace(outcomes={"evaluate-base": SimpleNamespace(artifact=None)})
    assert commands.prompt_of(run) == "Twice 2 is"


def test_an_import_s_next_command(folder: Path) -> None:
    from typer.testing import CliRunner

    from flows.cli import app

    make_model(folder / "ours")
    for words in (["export", "ours", "theirs"], ["import", "theirs", "--out=-my model", "--name", "m"]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    assert "Once upon a time" in paste(done.output.split("Next:\n")[1], folder)


def test_without_a_command_to_type_there_is_no_heading(folder: Path) -> None:
    out = io.StringIO()
    run = ended(folder, {})
    closing.show(run, Console(file=out, width=120))
    assert "Next" not in out.getvalue() and run.tracker.place.command in out.getvalue()
