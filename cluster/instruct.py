"""Instruction tuning: supervised fine-tuning on chat examples, the loss on the assistant's tokens only.

The base model's weights, the same training loop and the same rows of packed tokens as pretraining; only the batches
differ: whole conversations, best-fit packed, positions restarting at each, targets masked outside the assistant's
turns. Examples come from JSON-lines files ({"messages": [{"role", "content"}, …]}) or from `generated://…`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.fit import Worker, fit
from cluster.stage import Stage, Workspace, digest_source
from cluster.train import export_model, progress, run_trainer
from model.trainer import TrainConfig


class InstructConfig(BaseModel):
    """`[instruct]` of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: tuple[str, ...] = Field(min_length=1, description="chat examples: paths, globs, s3://…, generated://…")
    train: TrainConfig = TrainConfig(steps=200, lr=5e-4, warmup_steps=10, checkpoint_every=100)
    seed: int = 0


def external(config: InstructConfig) -> dict[str, str]:
    return {f"data:{url}": digest_source(url) for url in config.data}
