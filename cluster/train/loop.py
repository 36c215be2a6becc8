"""The training loop on a rank: model/trainer.py, with its rows, its curve, its checkpoints and its stop.

    rows of tokens ─ objective.batch ─▶ trainer.train(model, batches, config, objective.loss) ─▶ summary
                                          on_step ─▶ the curve      save ─▶ the store      resume ◀─ the store

`run_trainer` is the same for pretraining, extension, instruction tuning and RLHF, which differ in their batches and
their objective alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.data.order import rank_slice
from cluster.errors import UserError
from cluster.train.worker import StoppedAt, Worker
from model.config import ModelConfig
from model.objective import OBJECTIVES, objective_class, problem
from model.train_config import TrainConfig

if TYPE_CHECKING:
    from cluster.data.rows import RowBatch


def train_on_text(
    worker: Worker, model: Any, tokens: Path, train: TrainConfig, seed: int, weights: dict[str, float]
) -> dict | StoppedAt:
    """Train the model on packed text; `weights`: the share of each source, empty: by size. See `run_trainer`."""
    from cluster.data.rows import TokenRows

    objective, size = objective_for(train, model.config, seed), train.batch_size
    rows = TokenRows(tokens, train.seq_len, seed, weights or None, OBJECTIVES[train.objective].ahead)

    def batches(step: int) -> Any:
        arrays = rows.batch(step, size, worker.rank, worker.world_size)
        return batch_for(objective, arrays, numbers(worker, step * size, size))

    return run_trainer(worker, model, batches, train, objective.loss)


def objective_for(train: TrainConfig, model: ModelConfig, seed: int) -> Any:
    """The objective that `train` names, for this model (model/objective.py has the interface).

    Raises:
        UserError: this model can't be trained with it.
    """
    wrong = objective_problem(train, model)
    if wrong:
        raise UserError(wrong)
    return objective_class(train.objective)(train, model, seed)


def objective_problem(train: TrainConfig, model: ModelConfig) -> str | None:
    """Why a model can't be trained with this objective; None if it can."""
    return problem(train.objective, model.causal)


def numbers(worker: Worker, first: int, count: int) -> range:
    """Of the samples `first` to `first + count` of the run, those whose rows this rank reads."""
    return range(first, first + count)[rank_slice(count, worker.rank, worker.world_size)]


def batch_for(objective: Any, arrays: RowBatch, samples: range | list[int]) -> Any:
    """Rows as the objective reads them; `samples`: the number of each row among all samples of the run.

    A rank without rows, of a batch smaller than the workers are many, gets one in which nothing is to be predicted:
    it takes part in the step like the others and adds nothing to it.
    """
    import torch

    from model.objectives.next_token import IGNORE, Batch

    if not len(samples):
        shape = (1, arrays.tokens.shape[1])
        arrays = type(arrays)(np.zeros(shape, np.int64), np.full(shape, IGNORE), np.arange(shape[1])[None])
        samples = [0]
    return objective.batch(Batch(*(torch.from_numpy(a) for a in arrays)), torch.tensor(list(samples), dtype=torch.long))


def run_trainer(
    worker: Worker,
    model: Any,
    batches: Callable[[int], Any],
    config: TrainConfig,
    objective: Callable[..., Any],
    log: Callable[[int], dict[str, float]] | None = None,
) -> dict | StoppedAt:
    """model.trainer.train on this rank, with its curve, checkpoints, resume and stop wired to the platform.

    Args:
        batches: this rank's part of the global batch of a step.
        objective: (model, batch) -> (summed loss, valid count, extras).
        log: further values for a step's point on the curve.
    Returns:
        summary: steps, parameters, and of the curve the last loss and the rates of the median step without the first
        fifth; StoppedAt where the run was asked to stop.
    """
    from model import trainer

    found = worker.resume()

    def on_step(report: Any) -> bool:
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
        objective=objective,
        world_size=worker.world_size,
        device=worker.device,
        on_step=on_step,
        save=save,
        resume=found[1] if found else None,
    )
    if result.stopped:
        return StoppedAt(result.step)
    return {
        "steps": config.steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        **figures(worker),
        "precision": result.precision,
        "resumed_from": found[0] if found else None,
    }


def figures(worker: Worker) -> dict[str, float | None]:
    """A training's figures from its whole curve, so also of the steps before a resume, which may be all of them."""
    points = worker.points("loss")
    settled = points[len(points) // 5 :]

    def median(name: str) -> float | None:
        values = sorted(point[name] for point in settled if name in point)
        return values[len(values) // 2] if values else None

    return {
        "loss": points[-1]["loss"] if points else None,
        "tokens_per_second": median("tokens_per_second"),
        "mfu": median("mfu"),
    }
