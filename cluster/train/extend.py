"""Context extension: a trained model learns a longer context from a little more of the same text.

RoPE's frequencies are stretched (position interpolation: arXiv 2306.15595; NTK-aware; YaRN: arXiv 2309.00071; Llama
3's) or its theta is raised, then the model trains on rows of the new length. Weights, tokens, loop and objective are
the pretraining's; only the model's `max_seq_len` and RoPE differ afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import UserError
from cluster.stage import Stage, Workspace
from cluster.store.artifact import Artifact
from cluster.train.cost import training_cost
from cluster.train.export import export_model, progress
from cluster.train.fit import fit
from cluster.train.loop import train_on_text
from cluster.train.summary import TrainingSummary, gist
from cluster.train.worker import StoppedAt, Worker
from model.config import ModelConfig
from model.part_configs import RopeScaling
from model.train_config import TrainConfig


class ExtendConfig(BaseModel):
    """`[extend]` of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_seq_len: int = Field(ge=2, description="the new context")
    rope_scaling: RopeScaling | None = Field(None, description="default: the model's")
    rope_theta: float | None = Field(None, gt=0, description="default: the model's")
    train: TrainConfig = TrainConfig(steps=100, lr=2e-4, warmup_steps=10)
    seed: int = 0
    weights: dict[str, float] = Field(default_factory=dict, description="share of each source; empty: by size")

    def extended(self, model: ModelConfig) -> ModelConfig:
        """See `extended`."""
        return extended(model, self)


def extended(model: ModelConfig, config: ExtendConfig) -> ModelConfig:
    """The model's config with the new context; UserError where it can't have one."""
    if model.position == "learned":
        raise UserError("a model with learned positions has none past its max_seq_len: extend one with RoPE or none.")
    if config.max_seq_len <= model.max_seq_len:
        raise UserError(f"max_seq_len = {config.max_seq_len} is no longer than the model's {model.max_seq_len}.")
    if (config.rope_scaling or config.rope_theta) and model.position != "rope":
        raise UserError(
            f'rope_scaling and rope_theta are for position = "rope", and the model\'s is {model.position!r}.'
        )
    return replace(
        model,
        max_seq_len=config.max_seq_len,
        rope_scaling=config.rope_scaling or model.rope_scaling,
        rope_theta=config.rope_theta or model.rope_theta,
    )


@dataclass(frozen=True)
class Extension:
    """What a worker is given."""

    config: ExtendConfig
    model: Artifact
    tokens: Artifact


def run_extend(ws: Workspace) -> TrainingSummary:
    """Train the input model on at its new length. Writes a model artifact."""
    config: ExtendConfig = ws.config
    given = Extension(config, ws.inputs["model"], ws.inputs["tokens"])
    result = fit(ws, extend_worker, given, progress(ws, config.train.steps))
    return export_model(ws, given.model.path(), result)


def extend_worker(worker: Worker, given: Extension) -> dict | StoppedAt:
    from model.checkpoint import load_config, load_weights
    from model.decoder import Decoder

    config, folder = given.config, given.model.path()
    model = Decoder(extended(load_config(folder), config))
    load_weights(model, folder)
    return train_on_text(worker, model, given.tokens.path(), config.train, config.seed, config.weights)


STAGE = Stage("extend", "model", 1, ExtendConfig, run_extend, TrainingSummary, cost=training_cost, gist=gist)
