"""Pretraining: packed token rows -> a model, on N data-parallel workers.

The loop is model/trainer.py, in bare torch; here is only what surrounds it: which rows a rank reads, what a
checkpoint holds, what a curve shows. `run_trainer` is shared with instruction tuning and RLHF, which differ in their
batches and their objective alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import UserError
from cluster.stage import Stage, Workspace
from cluster.train.fit import fit
from cluster.train.worker import EVENTS, StoppedAt, Worker
from model.config import ModelConfig
from model.train_config import TrainConfig

if TYPE_CHECKING:
    from cluster.data.rows import RowBatch
    from cluster.train.extend import ExtendConfig

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")


class PretrainConfig(BaseModel):
    """`[model]` and `[train]` of a recipe, with its seed and the weights of its sources."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    seed: int = 0
    weights: dict[str, float] = Field(default_factory=dict, description="share of each source; empty: by size")


def run_pretrain(ws: Workspace) -> dict:
    """Train from scratch on the packed tokens. Writes a model artifact (see `export_model`)."""
    config: PretrainConfig = ws.config
    payload = {"config": config, "tokens": ws.inputs["tokens"], "tokenizer": ws.inputs["tokenizer"]}
    result = fit(ws, pretrain_worker, payload, progress(ws, config.train.steps))
    return export_model(ws, ws.inputs["tokenizer"].path(), result)


def pretrain_worker(worker: Worker, payload: dict) -> dict | StoppedAt:
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.decoder import Decoder

    config: PretrainConfig = payload["config"]
    vocab_size = Tokenizer(payload["tokenizer"].path()).vocab_size
    model = Decoder(replace(config.model, vocab_size=0).with_vocabulary(vocab_size))
    model.init_weights(config.seed)
    return train_on_text(worker, model, payload["tokens"].path(), config)


def train_on_text(worker: Worker, model: Any, tokens: Path, config: PretrainConfig | ExtendConfig) -> dict | StoppedAt:
    """Train the model on packed text, as the config's `train`, `seed` and `weights` say; see `run_trainer`."""
    from cluster.data.rows import TokenRows

    train, size = config.train, config.train.batch_size
    rows = TokenRows(tokens, train.seq_len, config.seed, config.weights or None, targets_ahead(train))

    def batches(step: int) -> Any:
        arrays = rows.batch(step, size, worker.rank, worker.world_size)
        return batch_for(train, model.config, arrays, numbers(worker, step * size, size), config.seed)

    return run_trainer(worker, model, batches, train)


def objective_problem(train: TrainConfig, model: ModelConfig) -> str | None:
    """Why a model can't be trained with this objective; None if it can."""
    if train.objective == "masked_diffusion" and model.causal:
        return "masked_diffusion fills in tokens from both sides: it needs model.causal = false."
    if train.objective == "next_token" and not model.causal:
        return (
            "a model with causal = false sees the token that it would predict: "
            'train it with objective = "masked_diffusion", or set model.causal = true.'
        )
    return None


def targets_ahead(train: TrainConfig) -> int:
    """How far targets are ahead of their tokens in the rows that an objective reads."""
    return 0 if train.objective == "masked_diffusion" else 1


def numbers(worker: Worker, first: int, count: int) -> range:
    """Of the samples `first` to `first + count` of the run, those whose rows this rank reads."""
    from cluster.data.order import rank_slice

    return range(first, first + count)[rank_slice(count, worker.rank, worker.world_size)]


def batch_for(train: TrainConfig, model: ModelConfig, arrays: RowBatch, samples: range | list[int], seed: int) -> Any:
    """Rows as the objective reads them; under masked diffusion each has its sample's own noise, whoever trains on it.

    Args:
        samples: the number of each row among all samples of the run.
    """
    import torch

    from model.trainer import Batch

    batch = Batch(*(torch.from_numpy(a) for a in arrays))
    if train.objective == "next_token":
        return batch
    from model.objectives.masked_diffusion import hide

    assert model.mask_id is not None
    return hide(batch, model.mask_id, torch.tensor(list(samples), dtype=torch.long), train.batch_size, seed)


def run_trainer(
    worker: Worker,
    model: Any,
    batches: Callable[[int], Any],
    config: TrainConfig,
    objective: Callable[..., Any] | None = None,
    log: Callable[[int], dict[str, float]] | None = None,
) -> dict | StoppedAt:
    """model.trainer.train on this rank, with its curve, checkpoints, resume and stop wired to the platform.

    Args:
        batches: this rank's part of the global batch of a step.
        objective: (model, batch) -> (summed loss, valid count, extras); default: the one that `config` names.
        log: further values for a step's point on the curve.
    Returns:
        summary: steps, tokens, last loss, rates; StoppedAt where the run was asked to stop.
    """
    from model import trainer

    if objective is None:
        problem = objective_problem(config, model.config)
        if problem:
            raise UserError(problem)
        if config.objective == "masked_diffusion":
            from model.objectives.masked_diffusion import masked_diffusion

            objective = partial(masked_diffusion, z_loss=config.z_loss)
    found = worker.resume()
    recent: list[Any] = []

    def on_step(report: Any) -> bool:
        recent.append(report)
        values = {
            "loss": report.loss,
            "lr": report.lr,
            "grad_norm": report.grad_norm,
            "tokens_per_second": report.tokens_per_second,
            "mfu": report.mfu,
            "tokens": report.tokens,
            **report.extras,
            **(log(report.step) if log else {}),
        }
        worker.metrics(report.step, values)
        return worker.stopping()

    def save(step: int, write: Callable[[Path], None]) -> None:
        worker.save(step, write)

    result = trainer.train(
        model,
        batches,
        config,
        rank=worker.rank,
        world_size=worker.world_size,
        device=worker.device,
        on_step=on_step,
        save=save,
        resume=found[1] if found else None,
        objective=objective,
    )
    if result.stopped:
        return StoppedAt(result.step)
    rates = [r.tokens_per_second for r in recent[len(recent) // 5 :]] or [0.0]
    shares = [r.mfu for r in recent[len(recent) // 5 :]] or [0.0]
    return {
        "steps": config.steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": recent[-1].loss if recent else None,
        "tokens_per_second": sorted(rates)[len(rates) // 2],
        "mfu": sorted(shares)[len(shares) // 2],
        "precision": result.precision,
        "resumed_from": found[0] if found else None,
    }


def export_model(ws: Workspace, tokenizer: Path, result: dict) -> dict:
    """The last checkpoint's weights become the artifact: model.safetensors, config.json, tokenizer.*, train.json.

    The optimizer's state stays behind: a model artifact is what later stages and the registry read.
    """
    found = ws.checkpoints.latest()
    if found is None or found[0] != result["steps"]:
        raise RuntimeError(f"{ws.step}: the last checkpoint is {found and found[0]}, expected {result['steps']}.")
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(found[1] / name, ws.out / name)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, ws.out / name)
    (ws.out / "train.json").write_text(json.dumps(result, indent=1))
    curve_figures(ws)
    return result


def curve_figures(ws: Workspace) -> None:
    """The curves a person looks at first, as figures beside the run's own metric plots."""
    steps, series = [], {"loss": [], "lr": [], "grad_norm": []}
    for line in (ws.out / EVENTS).read_text().splitlines():
        event = json.loads(line)
        if event["type"] == "metrics" and "loss" in event["values"]:
            steps.append(event["step"])
            for name, values in series.items():
                values.append(event["values"][name])
    for name, values in series.items():
        ws.events.figure(
            f"{ws.step}_{name}",
            {
                "title": f"{ws.step}: {name}",
                "x_label": "step",
                "y_label": name,
                "kind": "line",
                "series": [{"name": name, "x": steps, "y": values}],
            },
        )


def progress(ws: Workspace, steps: int) -> Callable[[dict], None]:
    """A driver-side listener that turns the curve's points into the progress bar's text."""

    def listen(event: dict) -> None:
        if event["type"] != "metrics" or "loss" not in event["values"]:
            return
        values = event["values"]
        text = f"loss {values['loss']:.3f}  {values['tokens_per_second'] / 1000:.1f}k tok/s"
        if "reward" in values:
            text = f"reward {values['reward']:.3f}  {text}"
        ws.progress(event["step"], steps, text)

    return listen


PRETRAIN = Stage(name="pretrain", kind="model", version=1, config=PretrainConfig, run=run_pretrain)
