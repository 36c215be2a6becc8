"""Stage `qat`: a few more steps of training in which weights are rounded as they will be, before they are quantized.

Rows, loop and objective are the pretraining's; the artifact is a model of plain weights, which `quantize` reads.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from cluster.quantize.config import QatTable, QuantizeConfig
from cluster.stage import Stage, Workspace
from cluster.store.artifact import Artifact
from cluster.train.cost import training_cost
from cluster.train.export import export_model, progress
from cluster.train.fit import fit
from cluster.train.loop import train_on_text
from cluster.train.summary import TrainingSummary, gist
from cluster.train.worker import StoppedAt, Worker
from model.quantization import KEPT, Kind
from model.train_config import TrainConfig


class QatConfig(BaseModel):
    """`[quantize.qat]` of a recipe, with what `[quantize]` will do, the seed and the weights of the sources."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = "int8"
    group_size: int = 64
    keep: tuple[str, ...] = KEPT
    train: TrainConfig = QatTable().train
    seed: int = 0
    weights: dict[str, float] = Field(default_factory=dict, description="share of each source; empty: by size")


def qat_config(config: QuantizeConfig, seed: int, weights: dict[str, float]) -> QatConfig | None:
    """What a quantization asks to be trained before it; None: nothing."""
    if config.qat is None:
        return None
    return QatConfig(
        kind=config.kind,
        group_size=config.group_size,
        keep=config.keep,
        train=config.qat.train,
        seed=seed,
        weights=weights,
    )


@dataclass(frozen=True)
class Training:
    """What a worker is given."""

    config: QatConfig
    model: Artifact
    tokens: Artifact


def run_qat(ws: Workspace) -> TrainingSummary:
    """Train the input model on under fake quantization. Writes a model artifact."""
    config: QatConfig = ws.config
    given = Training(config, ws.inputs["model"], ws.inputs["tokens"])
    result = fit(ws, qat_worker, given, progress(ws, config.train.steps))
    return export_model(ws, given.model.path(), result)


def qat_worker(worker: Worker, given: Training) -> dict | StoppedAt:
    from model.checkpoint import load_model
    from model.quantize.qat import prepare

    config = given.config
    model = prepare(load_model(given.model.path()), config.kind, config.group_size, config.keep)
    return train_on_text(worker, model, given.tokens.path(), config.train, config.seed, config.weights)


STAGE = Stage("qat", "model", 1, QatConfig, run_qat, TrainingSummary, cost=training_cost, gist=gist)
