"""RLHF: policy optimisation against a verifiable reward, or on a set of preferences, with a KL to the reference.

    policy (grpo, dr_grpo, …)   prompts of tasks -> group_size sampled answers each -> the verifier's reward ->
                                advantage within the group -> clipped policy loss + kl_coef * KL(policy, reference)
    preference (dpo, ipo, …)    (prompt, chosen, rejected) -> a loss on the margin over the reference's

The reference is the instructed model. Rewards before and after are measured on held-out prompts, none of which is
ever trained on. The loop is model/trainer.py again: a rollout is a batch, made by the policy at that step.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.fit import Worker, fit
from cluster.stage import Stage, Workspace, digest_source
from cluster.train import export_model, progress, run_trainer
from model.trainer import TrainConfig

Method = Literal["grpo", "dr_grpo", "dpo", "ipo"]
PREFERENCE = ("dpo", "ipo")


class RlhfConfig(BaseModel):
    """`[rlhf]` of a recipe. Batch sizes are global, over all workers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = "grpo"
    tasks: tuple[str, ...] = Field((), description="verifiable tasks: paths, globs, s3://…, generated://…")
    heldout: tuple[str, ...] = Field((), description="tasks never trained on, for the reward before and after")
    preferences: tuple[str, ...] = Field((), description='{"messages", "chosen", "rejected"} for dpo and ipo')
    group_size: int = Field(8, ge=2, description="answers sampled for each prompt")
    max_new_tokens: int = Field(48, gt=0)
    temperature: float = Field(1.0, gt=0)
    kl_coef: float = Field(0.01, ge=0)
    beta: float = Field(0.1, gt=0, description="dpo, ipo: strength of the pull to the reference")
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.2, gt=0)
    heldout_prompts: int = Field(128, gt=0)
    train: TrainConfig = TrainConfig(
        steps=50, batch_size=128, lr=1e-4, warmup_steps=5, schedule="constant", checkpoint_every=25
    )
    seed: int = 0

    @model_validator(mode="after")
    def _has_data(self) -> RlhfConfig:
        if self.method in PREFERENCE and not self.preferences:
            raise ValueError(f"method = {self.method!r} learns from preferences: give [rlhf] preferences = [\"…\"].")
        if self.method not in PREFERENCE and not self.tasks:
            raise ValueError(f"method = {self.method!r} learns from verifiable tasks: give [rlhf] tasks = [\"…\"].")
        if self.method not in PREFERENCE and self.train.batch_size % self.group_size:
            raise ValueError(
                f"[rlhf.train] batch_size = {self.train.batch_size} counts sampled answers, so it must be a multiple "
                f"of group_size = {self.group_size}."
            )
        return self


def external(config: RlhfConfig) -> dict[str, str]:
    return {f"data:{url}": digest_source(url) for url in (*config.tasks, *config.heldout, *config.preferences)}
