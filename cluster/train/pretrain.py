"""Pretraining: packed token rows -> a model, on N data-parallel workers.

The loop is loop.py's, what is left of it export.py's; here is the stage: a fresh model, the size of its vocabulary
from the tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict, Field

from cluster.stage import Stage, Workspace
from cluster.store.artifact import Artifact
from cluster.train.cost import training_cost
from cluster.train.export import export_model, progress
from cluster.train.fit import fit
from cluster.train.loop import train_on_text
from cluster.train.summary import TrainingSummary, gist
from cluster.train.worker import StoppedAt, Worker
from model.config import ModelConfig
from model.train_config import TrainConfig


class PretrainConfig(BaseModel):
    """`[model]` and `[train]` of a recipe, with its seed and the weights of its sources."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    seed: int = 0
    weights: dict[str, float] = Field(default_factory=dict, description="share of each source; empty: by size")


@dataclass(frozen=True)
class Pretraining:
    """What a worker is given."""

    config: PretrainConfig
    tokens: Artifact
    tokenizer: Artifact


def run_pretrain(ws: Workspace) -> TrainingSummary:
    """Train from scratch on the packed tokens. Writes a model artifact (see `export_model`)."""
    config: PretrainConfig = ws.config
    given = Pretraining(config, ws.inputs["tokens"], ws.inputs["tokenizer"])
    result = fit(ws, pretrain_worker, given, progress(ws, config.train.steps))
    return export_model(ws, given.tokenizer.path(), result)


def pretrain_worker(worker: Worker, given: Pretraining) -> dict | StoppedAt:
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.decoder import Decoder

    config = given.config
    vocab_size = Tokenizer(given.tokenizer.path()).vocab_size
    model = Decoder(replace(config.model, vocab_size=0).with_vocabulary(vocab_size))
    model.init_weights(config.seed)
    return train_on_text(worker, model, given.tokens.path(), config.train, config.seed, config.weights)


STAGE = Stage("pretrain", "model", 1, PretrainConfig, run_pretrain, TrainingSummary, cost=training_cost, gist=gist)
