"""Every recipe that ships trains, through the line's own stages, at a tiny size, and its loss falls."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.evaluate.tasks import score_task
from cluster.quantize.summary import QuantizeSummary
from cluster.session import ClusterConfig, Session
from cluster.stage import Surroundings, run_step
from cluster.store.artifact import Artifacts
from flows.graph import graph, until
from flows.recipe_read import read_recipe

RECIPES = sorted(path.stem for path in (Path(__file__).parent.parent / "flows" / "recipes").glob("*.toml"))
TINY = [
    'sources=[{name="prose",path="installed://prose?packages=stdlib&max_mb=0.3"}]',
    "filter={}",
    "tokenizer.vocab_size=512",
    "model.d_model=64",
    "train.steps=30",
    "train.batch_size=8",
    "train.seq_len=64",
    "train.warmup_steps=3",
]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """One Ray for all recipes, which starts although another is said to run on this machine.

    The trainings are in this process.
    """
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray") as folder:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_TMPDIR", folder)  # not pytest's, which is too long for a socket's name
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text(
            "127.0.0.1:1", encoding="utf-8"
        )  # what `ray start --head` writes
        session = Session(ClusterConfig(workers=0, cpus_per_worker=1))
        yield session
        session.close()


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """One store for all recipes: what they have in common is made once."""
    return Artifacts(tmp_path_factory.mktemp("recipes") / "store")


def curve(artifact: Any) -> list[float]:
    points = map(json.loads, artifact.read("events.jsonl").decode().splitlines())
    return [point["values"]["loss"] for point in points if point["type"] == "metrics" and "loss" in point["values"]]


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_trains_and_its_loss_falls(name: str, session: Session, artifacts: Artifacts) -> None:
    written = read_recipe(name)
    tiny = [*TINY]
    if "window" in written.model.pattern:
        tiny += ["model.window=24"]  # shorter than the rows
    if written.model.mup_base_width:
        tiny += ["model.mup_base_width=32"]  # at the base width muP changes nothing
    if written.extend:
        tiny += ["extend.train.steps=60", "extend.train.batch_size=4", "extend.train.lr=1e-3"]
    if written.quantize and written.quantize.qat:
        tiny += ["quantize.qat.train.steps=30", "quantize.qat.train.batch_size=8", "quantize.qat.train.seq_len=64"]
    recipe = read_recipe(name, tiny)
    assert recipe.name == written.name and recipe.model.pattern == written.model.pattern
    last = "quantize" if recipe.quantize else "extend" if recipe.extend else "pretrain"
    for step in until(graph(recipe), last):
        artifact = run_step(step, artifacts, Surroundings(session)).artifact
        if step.name == "pretrain":
            loss = curve(artifact)
            assert len(loss) == 30
            assert sum(loss[-5:]) / 5 < loss[0] - 0.3
            for task in recipe.evaluate.tasks:
                if recipe.evaluate.answering(task).method:
                    few = task.model_copy(update={"limit": 3, "max_new_tokens": 6})
                    scores = score_task(artifact, few, recipe.evaluate)
                    assert scores[f"{task.name}/items"] == 3 and 0 <= scores[f"{task.name}/accuracy"] <= 1
        elif step.name == "extend":
            config = json.loads(artifact.read("config.json"))
            assert recipe.extend and config["max_seq_len"] == recipe.extend.max_seq_len
            assert config["rope_scaling"]["kind"] == "yarn" and config["rope_scaling"]["factor"] == 4.0
            loss = curve(artifact)
            assert len(loss) == 60
            assert sum(loss[-5:]) / 5 < sum(loss[:5]) / 5 - 0.15  # 0.04 of it is the batches'
        elif step.name == "quantize":
            said = step.stage.summary.read(artifact.summary)
            assert isinstance(said, QuantizeSummary) and said.bpb and said.bpb_before
            least, most = {"int8": (1.9, 1.01), "int4": (3.5, 1.04)}[said.kind]
            assert 2 * said.linear_parameters / said.linear_bytes > least
            assert said.bpb < most * said.bpb_before
            assert said.tokens_per_second and said.linears and not said.in_int8
            assert json.loads(artifact.read("config.json"))["quantization"]["kind"] == said.kind
