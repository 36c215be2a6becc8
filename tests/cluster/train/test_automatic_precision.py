"""What `precision = "auto"` is here is asked once; a plan says where a cached model was computed otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from cluster.session import ClusterConfig
from cluster.stage import Stage, Step, fingerprint, run_step
from cluster.store.artifact import Artifacts
from cluster.train import precision
from cluster.train.precision import automatic, made_in
from flows.plan import look, other_machines
from model.precision import choose
from model.train_config import TrainConfig
from tests.given_summary import Given


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Each time that torch was asked; this machine takes bf16."""
    calls: list[Any] = []
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "_ask", lambda use_gpu: calls.append(use_gpu) or "bf16")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return calls


def test_a_machine_is_asked_once_and_again_when_it_changes(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert [automatic(), automatic(), automatic(False)] == ["bf16"] * 3 and asked == ["auto", False]
    monkeypatch.setattr(precision.importlib.metadata, "version", lambda name: "9.9")
    assert automatic() == "bf16" and len(asked) == 3
    (tmp_path / "cache" / precision.MEMORY).write_text("[", encoding="utf-8")
    assert automatic() == "bf16" and len(asked) == 4, "a damaged memory is made anew"


def test_the_memory_is_made_with_its_folders(asked: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "not" / "there" / "yet"))
    assert [automatic(), automatic()] == ["bf16"] * 2 and len(asked) == 1


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float32, "fp32")])
def test_the_answer_is_what_a_training_takes(monkeypatch: pytest.MonkeyPatch, dtype: Any, name: str) -> None:
    monkeypatch.setattr("model.precision.choose", lambda precision, device: (dtype, "since it is so"))
    assert precision._ask(False) == name


def test_what_a_training_writes_of_its_dtype_is_understood() -> None:
    dtype, words = choose("auto", "cpu")
    name = "bf16" if "bfloat16" in str(dtype) else "fp32"
    assert made_in({"train": {"precision": "auto"}}, {"precision": words}) == name
    assert made_in({"train": {"precision": "fp32"}}, {"precision": "fp32 was asked for"}) is None
    assert made_in({}, {"precision": "bf16, since"}) is None and made_in({"train": {"precision": "auto"}}, {}) is None


class Config(BaseModel):
    train: TrainConfig = TrainConfig()


class Recipe(BaseModel):
    cluster: ClusterConfig = ClusterConfig.model_validate({})


@pytest.mark.parametrize(("made", "warned"), [("fp32", True), ("bf16", False)])
def test_a_plan_says_which_cached_model_another_kind_of_machine_made(
    asked: list[Any], tmp_path: Path, made: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = Artifacts(str(tmp_path / "store"))
    stage = Stage(
        "pretrain",
        "model",
        1,
        Config,
        lambda ws: Given({"precision": f"{made}, since it is so"}),
        Given,
        uses_ray=False,
    )
    step = Step("pretrain", stage, Config(), {})
    run_step(step, artifacts)
    lines = other_machines(Recipe(), look([step], artifacts))  # type: ignore[arg-type]
    assert bool(lines) is warned
    if warned:
        assert "pretrain: made in fp32" in lines[0] and 'precision = "bf16"' in lines[0]
    monkeypatch.setenv("RAY_ADDRESS", "ray://far:1")
    assert other_machines(Recipe(), look([step], artifacts)) == [], "there the workers' machine decides"  # type: ignore[arg-type]
    other = Step("pretrain", stage, Config(train=TrainConfig(precision="fp32")), {})
    assert fingerprint(other) != fingerprint(step)
