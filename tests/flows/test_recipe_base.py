"""`base = "…"`: what a recipe begins with, what has no place beside it, and what its plan says."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.errors import UserError
from cluster.interop.huggingface import import_folder, register_folder
from cluster.registry.versions import Registry
from cluster.stage import fingerprint
from cluster.store.artifact import Artifacts
from cluster.tracking.place import locate
from flows import plan
from flows.cli import app
from flows.graph import graph
from flows.recipe_errors import RecipeError
from flows.recipe_read import read_recipe
from flows.run import Run
from tests.cluster.their_chat_model import make_chat_model, write_chats
from tests.cluster.tiny_mlflow import sqlite_place
from tests.cluster.tiny_model import make_model

TEXT = '[[sources]]\nname = "prose"\npath = "text.txt"\n'
INSTRUCT = '[instruct]\ndata = ["chats.jsonl"]\n[instruct.train]\nsteps = 4\nseq_len = 128\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an imported model, registered twice, and what it came from."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        place = sqlite_place(folder)
        make_chat_model(folder / "theirs")
        done, _ = import_folder(folder / "theirs", folder / "ours")
        register_folder(folder / "ours", "m", done, folder / "theirs", place)
        make_chat_model(folder / "others", seed=1)
        done, _ = import_folder(folder / "others", folder / "other")
        register_folder(folder / "other", "m", done, folder / "others", place)
        Registry(place).client.set_registered_model_alias("m", "champion", "1")
        make_model(folder / "trained-here")
        write_chats(folder / "chats.jsonl")
        (folder / "text.txt").write_text("One.\n\nTwo.\n", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return made


def read(text: str, *overrides: str, name: str = "r.toml") -> Any:
    Path(name).write_text(f'name = "tuned"\n{text}', encoding="utf-8")
    return read_recipe(name, overrides)


def wrong(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read(text, *overrides)
    return str(caught.value)


def names(recipe: Any) -> dict[str, str]:
    return {step.name: fingerprint(step) for step in graph(recipe)}


def test_the_line_begins_with_the_base_and_reads_its_tokenizer() -> None:
    recipe = read('base = "models:/m/1"\n' + TEXT + INSTRUCT + "[release]\n")
    steps = {step.name: step for step in graph(recipe)}
    expected = ["base", "corpus", "filter", "pack", "evaluate-base", "instruct", "evaluate", "release"]
    assert list(steps) == expected
    assert steps["pack"].inputs["tokenizer"] is steps["base"] is steps["instruct"].inputs["model"]
    without = {step.name: step for step in graph(read('base = "models:/m/1"\n' + INSTRUCT + "[release]\n"))}
    assert list(without) == ["base", "evaluate-base", "instruct", "evaluate", "release"]
    assert list(without["instruct"].inputs) == ["model"]


def test_what_counts_is_the_model_s_content_and_not_its_name() -> None:
    made = {
        base: names(read(f'base = "{base}"\n{INSTRUCT}'))
        for base in ("models:/m@champion", "models:/m", "models:/m/1", "ours", "models:/m/2", "theirs")
    }
    assert made["models:/m@champion"] == made["models:/m"] == made["models:/m/1"] == made["ours"]
    assert made["models:/m/2"] == names(read(f'base = "other"\n{INSTRUCT}')) != made["ours"]
    assert made["theirs"] not in (made["ours"], made["models:/m/2"])
    shutil.copytree("theirs", "moved", dirs_exist_ok=True)
    Path("moved/README.md").write_text("no part of it", encoding="utf-8")
    assert names(read(f'base = "moved"\n{INSTRUCT}')) == made["theirs"]
    about = json.loads(Path("moved/tokenizer_config.json").read_text(encoding="utf-8"))
    Path("moved/tokenizer_config.json").write_text(json.dumps(about | {"x": 1}), encoding="utf-8")
    assert names(read(f'base = "moved"\n{INSTRUCT}')) != made["theirs"]


def test_an_alias_is_resolved_when_the_recipe_is_read_and_the_plan_says_to_what(folder: Path) -> None:
    recipe = read('base = "models:/m@champion"\n' + INSTRUCT)
    [base] = [step for step in graph(recipe) if step.name == "base"]
    assert base.config.name == "models:/m/1"
    screen = io.StringIO()
    plan.show(recipe, graph(recipe), Artifacts("store"), Console(file=screen, width=160))
    said = screen.getvalue()
    assert "Base: models:/m@champion is models:/m/1 now." in said
    assert "models:/m/1" in next(line for line in said.splitlines() if line.startswith("base "))
    assert "vocabulary 384" in said and "FLOPs per token of rows of 128" in said
    tokens = next(line for line in said.splitlines() if line.startswith("instruct ")).split()[1]
    assert tokens == "16.4k"  # 4 steps of 32 rows of 128
    client = Registry(locate(folder / "store")).client
    client.set_registered_model_alias("m", "champion", "2")
    try:
        later = read('base = "models:/m@champion"\n' + INSTRUCT)
        assert names(later) == names(read('base = "models:/m/2"\n' + INSTRUCT)) != names(recipe)
    finally:
        client.set_registered_model_alias("m", "champion", "1")


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ("[model]\nd_model = 32\n", "model"),
        ("[tokenizer]\nvocab_size = 500\n", "tokenizer"),
        ("[train]\nsteps = 3\n", "train"),
        ('[model]\npreset = "10M"\n', "model"),
        ("[filter]\n", "filter"),
        ("[pack]\nvalidation_fraction = 0.1\n", "pack"),
        ("[corpus]\n", "corpus"),
        ("[extend]\nmax_seq_len = 512\n", "extend"),
        ('[[sources]]\nname = "a"\npath = "text.txt"\nweight = 2.0\n', "sources.a.weight"),
    ],
)
def test_what_has_no_place_beside_a_base_is_refused_at_its_line(more: str, key: str) -> None:
    said = wrong('base = "ours"\n' + INSTRUCT + more)
    assert f"{key}  (r.toml, line" in said and "1 problem" in said


def test_what_is_inherited_is_taken_away_by_false() -> None:
    Path("low.toml").write_text("[model]\nd_model = 32\n[train]\nsteps = 1\n[tokenizer]\n" + TEXT, encoding="utf-8")
    recipe = read('base = "ours"\nextends = "low.toml"\nmodel = false\ntrain = false\ntokenizer = false\n' + INSTRUCT)
    assert recipe.model.d_model == 32 and recipe.network.vocab_size == 384
    assert "train = false" in wrong('base = "ours"\nextends = "low.toml"\nmodel = false\ntokenizer = false\n')
    assert "must be a table" in wrong("model = false\n" + TEXT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('base = "models:/n/1"\n', "No model 'n' is registered"),
        ('base = "models:/m/7"\n', "has no version 7; it has 2, 1"),
        ('base = "models:/m@best"\n', "has no alias @best; it has @champion"),
        ('base = "models:/m@a/b"\n', "Write models:/NAME@ALIAS"),
        ('base = "m"\n', "written models:/m@champion"),
        ('base = "nowhere/at/all"\n', "There is no folder nowhere/at/all"),
        ('base = "s3://bucket/model"\n', "folder or a .gguf file of this machine"),
        ('base = "text.txt"\n', "text.txt"),
        ('base = "cut.gguf"\n', "cut.gguf"),
        ("base = 3\n", "a text in quotes"),
        ('base = ""\n', "at least 1 character"),
        ('base = "ours"\n' + INSTRUCT + "replay = 0.5\n", "no such key"),
        ('base = "ours"\n[instruct]\ndata = ["chats.jsonl"]\nreplay = 0.5\n', "needs [[sources]]"),
        ('base = "ours"\n' + INSTRUCT.replace("128", "300"), "base's context = 256"),
        ('base = "ours"\n[release]\nmetrics = [{ metric = "bpb", mode = "min" }]\n', "it measures nothing"),
        (INSTRUCT, "sources"),
    ],
)
def test_what_is_wrong_with_a_base_is_said(text: str, said: str) -> None:
    Path("cut.gguf").write_bytes(b"GGUF")
    assert said in wrong(text)


def test_a_base_without_a_tokenizer_or_a_template_is_refused_before_anything_starts() -> None:
    shutil.copytree("theirs", "silent", dirs_exist_ok=True)
    Path("silent/chat_template.jinja").unlink()
    assert "has no chat template" in wrong('base = "silent"\n' + INSTRUCT)
    assert graph(read('base = "silent"\n' + TEXT))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        Path(f"silent/{name}").unlink()
    assert "no tokenizer" in wrong('base = "silent"\n' + INSTRUCT)


@pytest.mark.parametrize("more", [[], ["--plan"]])
def test_a_registry_that_is_away_is_one_sentence(more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("r.toml").write_text('name = "tuned"\nbase = "models:/m/1"\n', encoding="utf-8")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = CliRunner().invoke(app, ["run", "r.toml", "--set", "tracking.uri=http://127.0.0.1:1", *more])
    assert result.exit_code == 1 and "MLflow at http://127.0.0.1:1 does not answer" in " ".join(result.output.split())


def test_a_base_that_chats_needs_no_instruct_before_rlhf_and_its_data_are_measured_at_once() -> None:
    rlhf = '[rlhf]\ntasks = ["tasks.jsonl"]\nheldout_items = 1\n[rlhf.train]\nseq_len = 128\n'
    lines = [json.dumps({"prompt": f"{i} and {'so ' * 20 * i}", "answer": str(i)}) for i in range(8)]
    Path("tasks.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = read('base = "trained-here"\n' + rlhf.replace("128", "64"))
    assert [step.name for step in graph(recipe)] == ["base", "evaluate-base", "rlhf", "evaluate"]
    with pytest.raises(UserError, match=r"tasks.jsonl:\d"):
        Run.open(recipe, console=Console(file=io.StringIO()))
