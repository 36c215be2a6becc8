"""The loop on a rank: its summary's figures, and an objective that nobody here knew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from alone import Alone, folder_of, make_tokens

from cluster.train import loop
from cluster.train.loop import objective_for, run_trainer
from cluster.train.pretrain import PretrainConfig, Pretraining, pretrain_worker
from flows.recipe_errors import RecipeError
from flows.recipe_read import read_recipe
from model import objective as registry
from model import trainer
from model.config import ModelConfig
from model.train_config import TrainConfig

SHAPE = ModelConfig(d_model=32, n_layers=1, n_heads=2, max_seq_len=64)
TRAIN = TrainConfig(steps=12, batch_size=4, seq_len=32, lr=1e-2, warmup_steps=2, checkpoint_every=0)


def test_the_rate_of_a_training_is_the_median_step_s_without_the_first_fifth(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rates = [1.0, 2.0, *(5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0)]  # of the last eight the median is 9

    def train(model: Any, batches: Any, config: TrainConfig, **given: Any) -> trainer.TrainResult:
        for step, rate in enumerate(rates, 1):
            given["on_step"](trainer.StepReport(step, 1.0, 0.1, 1.0, 8, rate, rate / 1000, 0.1, 0))
        return trainer.TrainResult(len(rates), False, 1.0, 80, 0, 1.0, "fp32")

    monkeypatch.setattr(trainer, "train", train)
    from model.decoder import Decoder

    model = Decoder(SHAPE.with_vocabulary(31))
    summary = run_trainer(Alone(tmp_path), model, lambda step: None, TRAIN, lambda model, batch: None)
    assert isinstance(summary, dict)
    assert (summary["tokens_per_second"], summary["mfu"]) == (9.0, 0.009)


@pytest.mark.parametrize("done", [12, 6])
def test_a_resume_has_the_figures_of_the_whole_curve(tmp_path: Path, done: int) -> None:
    """Also one that has no step left to do: the run before was killed between its last checkpoint and its artifact."""
    tokens, before = make_tokens(tmp_path / "tokens"), Alone(tmp_path / "checkpoint")
    before.folder.mkdir()

    def given(steps: int) -> Pretraining:
        config = PretrainConfig(model=SHAPE, train=replace(TRAIN, steps=steps, schedule="constant"))
        return Pretraining(config, folder_of(tokens), folder_of(tokens))

    undisturbed = pretrain_worker(Alone(tmp_path), given(12))
    pretrain_worker(before, given(done))

    class Resumed(Alone):
        def resume(self) -> Any:
            self.events = list(before.events)
            return done, before.folder

    resumed = Resumed(tmp_path)
    summary = pretrain_worker(resumed, given(12))
    assert isinstance(summary, dict) and isinstance(undisturbed, dict)
    assert summary["loss"] == undisturbed["loss"] == resumed.losses[-1]
    rates = sorted(e["values"]["tokens_per_second"] for e in resumed.events[2:])
    assert summary["tokens_per_second"] == rates[5] > 0 and summary["mfu"] is not None
    assert summary["resumed_from"] == done


@pytest.mark.parametrize(("name", "ahead"), [("next_token", 1), ("masked_diffusion", 0)])
def test_targets_are_as_far_ahead_as_the_objective_reads_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, ahead: int
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(loop, "batch_for", lambda objective, arrays, samples: seen.append(arrays))
    monkeypatch.setattr(loop, "run_trainer", lambda worker, model, batches, *_: batches(0))
    model: Any = SimpleNamespace(config=replace(SHAPE, causal=name == "next_token").with_vocabulary(320))
    train = replace(TRAIN, objective=name)
    loop.train_on_text(Alone(tmp_path), model, make_tokens(tmp_path / "tokens"), train, seed=0, weights={})
    tokens, targets = seen[0].tokens[:, ahead:], seen[0].targets[:, : TRAIN.seq_len - ahead]
    assert (tokens == targets)[targets >= 0].all() and (targets >= 0).mean() > 0.8


@pytest.fixture
def throw_away(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry.Objective("tests.throw_away.repeat:Repeat", 0, True, "looks at a token", "causal", "exact")
    monkeypatch.setitem(registry.OBJECTIVES, "repeat", entry)


def test_an_objective_is_one_file_and_one_entry(throw_away: None, tmp_path: Path) -> None:
    recipe = read_recipe("demo", ["train.objective=repeat"])
    assert recipe.train.objective == "repeat"
    with pytest.raises(RecipeError, match=r"repeat looks at a token: it needs model\.causal = true"):
        read_recipe("demo", ["train.objective=repeat", "model.causal=false"])
    tokens = make_tokens(tmp_path / "tokens")
    worker = Alone(tmp_path)
    config = PretrainConfig(model=SHAPE, train=replace(TRAIN, objective="repeat"))
    pretrain_worker(worker, Pretraining(config, folder_of(tokens), folder_of(tokens)))
    assert worker.losses[-1] < 0.6 * worker.losses[0]


def test_a_model_that_does_not_suit_an_objective_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="masked_diffusion fills in tokens from both sides"):
        objective_for(replace(TRAIN, objective="masked_diffusion"), SHAPE, 0)
