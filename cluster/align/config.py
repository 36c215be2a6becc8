"""`[rlhf]` of a recipe: the methods, their data, their numbers. Read without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.errors import UserError
from model.config import ModelConfig
from model.objective import for_models
from model.train_config import TrainConfig

if TYPE_CHECKING:
    from model.objectives.policy import PolicyConfig
    from model.objectives.preference import PreferenceConfig

# method -> fields of model.objectives.policy.PolicyConfig; see there for the papers
POLICY: dict[str, dict[str, Any]] = {
    "grpo": {"advantage": "grpo", "reduction": "sequence"},
    "dr_grpo": {"advantage": "dr_grpo", "reduction": "constant"},
    "rloo": {"advantage": "rloo", "reduction": "sequence"},
    "dapo": {"advantage": "grpo", "reduction": "token"},
    "gspo": {"advantage": "grpo", "reduction": "sequence", "ratio": "sequence"},
}
PREFERENCE = ("dpo", "ipo", "simpo")


class RlhfConfig(BaseModel):
    """`[rlhf]` of a recipe. Batch sizes are global, over all workers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["grpo", "dr_grpo", "rloo", "dapo", "gspo", "dpo", "ipo", "simpo"] = "dr_grpo"
    tasks: tuple[str, ...] = Field((), description="verifiable tasks: paths, globs, s3://…, generated://…")
    preferences: tuple[str, ...] = Field((), description="pairs for dpo, ipo and simpo")
    heldout: tuple[str, ...] = Field((), description="not trained on here; default: one in ten of tasks or preferences")
    heldout_items: int = Field(128, gt=0, description="held-out prompts or pairs that are scored")
    group_size: int = Field(8, ge=2, description="answers sampled for each prompt")
    max_new_tokens: int = Field(48, gt=0)
    kl_coef: float = Field(0.01, ge=0, description="weight of the KL to the reference")
    kl: Literal["k2", "k3"] = Field("k2", description="how the KL is estimated in the loss")
    clip_low: float = Field(0.2, ge=0)
    clip_high: float = Field(0.2, ge=0)
    beta: float = Field(0.1, gt=0, description="of dpo, ipo and simpo")
    gamma: float = Field(1.375, ge=0, description="the margin that simpo aims at")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of pairs that may be wrong, of dpo (cDPO)")
    train: TrainConfig = TrainConfig(
        steps=50, batch_size=128, lr=1e-4, warmup_steps=5, schedule="constant", checkpoint_every=25
    )
    seed: int = 0

    @model_validator(mode="after")
    def _has_data(self) -> RlhfConfig:
        if self.method in PREFERENCE:
            if not self.preferences:
                raise UserError(f"method = {self.method!r} learns from pairs: give preferences = [...].")
            return self
        if not self.tasks:
            raise UserError(f"method = {self.method!r} learns from verifiable tasks: give tasks = [...].")
        if self.train.batch_size % self.group_size:
            raise UserError(
                f"train.batch_size = {self.train.batch_size} counts sampled answers, so it must be a multiple of "
                f"group_size = {self.group_size}."
            )
        return self

    @property
    def data(self) -> tuple[str, ...]:
        return self.preferences if self.method in PREFERENCE else self.tasks

    @property
    def policy(self) -> PolicyConfig:
        from model.objectives.policy import PolicyConfig

        return PolicyConfig(
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            kl=self.kl,
            kl_weight=self.kl_coef,
            max_tokens=self.max_new_tokens,
            **POLICY[self.method],
        )

    @property
    def preference(self) -> PreferenceConfig:
        from model.objectives.preference import PreferenceConfig

        return PreferenceConfig(self.method, self.beta, self.gamma, self.label_smoothing)  # type: ignore[arg-type]


def policy_problem(model: ModelConfig) -> str | None:
    """Why a model can't be a policy here; None if it can."""
    if for_models(model.causal).likelihood == "exact":
        return None
    return (
        "needs the probability of each sampled token, which a diffusion model (causal = false) only bounds: "
        "leave [rlhf] out, or set model.causal = true."
    )
