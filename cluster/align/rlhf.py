"""RLHF: policy optimisation against a verifiable reward, or on a set of preferences, with a KL to the reference.

    policy (grpo, dr_grpo, …)   prompts of tasks -> group_size sampled answers each -> the verifier's reward ->
                                advantage within the group -> clipped policy loss + kl_coef * KL(policy, reference)
    preference (dpo, ipo, …)    (prompt, chosen, rejected) -> a loss on the margin over the reference's

The reference is the instructed model. Rewards before and after are measured on held-out prompts, none of which is
ever trained on. The loop is model/trainer.py again: a rollout is a batch, made by the policy at that step.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.data.examples import examples
from cluster.data.held_out import one_in
from cluster.errors import UserError
from cluster.stage import Stage, Workspace
from cluster.train.fit import Worker, fit
from cluster.train.pretrain import export_model, progress, run_trainer
from model.config import ModelConfig
from model.train_config import TrainConfig

if TYPE_CHECKING:
    from model.objectives.policy import PolicyConfig

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
    heldout: tuple[str, ...] = Field((), description="never trained on; default: one in ten of tasks or preferences")
    heldout_items: int = Field(128, gt=0, description="held-out prompts or pairs that are scored")
    group_size: int = Field(8, ge=2, description="answers sampled for each prompt")
    max_new_tokens: int = Field(48, gt=0)
    kl_coef: float = Field(0.01, ge=0, description="weight of the KL to the reference")
    clip_low: float = Field(0.2, ge=0)
    clip_high: float = Field(0.2, ge=0)
    beta: float = Field(0.1, gt=0, description="of dpo, ipo and simpo")
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
            kl_weight=self.kl_coef,
            max_tokens=self.max_new_tokens,
            **POLICY[self.method],
        )


def external(config: RlhfConfig) -> dict[str, str]:
    return {f"data:{url}": examples.digest(url) for url in (*config.data, *config.heldout)}


def run_rlhf(ws: Workspace) -> dict:
    """Optimise the input model. Writes a model artifact; the summary has the held-out score before and after."""
    config: RlhfConfig = ws.config
    result = fit(ws, rlhf_worker, {"config": config, "model": ws.inputs["model"]}, progress(ws, config.train.steps))
    return export_model(ws, ws.inputs["model"].path(), result)


def rlhf_worker(worker: Worker, payload: dict) -> dict:
    from cluster.align.preferences import Pairs
    from cluster.align.rollout import Rollouts
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.checkpoint import load_model

    config: RlhfConfig = payload["config"]
    folder = payload["model"].path()
    model, reference = load_model(folder), load_model(folder)
    problem = policy_problem(model.config)
    if problem:
        raise UserError(f"[rlhf] {problem}")
    train, heldout = split(config)
    learner = (Pairs if config.method in PREFERENCE else Rollouts)(
        config, model, reference, Tokenizer(folder), worker, train, heldout
    )
    if worker.resume():
        before = worker.recall(0)
    else:
        before = learner.score()
        worker.metrics(0, before)
    summary = run_trainer(worker, learner.model, learner.batch, config.train, learner.objective, learner.log)
    if "stopped" in summary:
        return summary
    after = learner.score()
    worker.metrics(config.train.steps, after)
    summary |= {f"{name}_before": value for name, value in before.items()}
    summary |= {f"{name}_after": value for name, value in after.items()}
    return summary | {"train_items": len(train), "heldout_items": len(heldout)}


def policy_problem(model: ModelConfig) -> str | None:
    """Why a model can't be a policy here; None if it can."""
    if model.causal:
        return None
    return (
        "needs the probability of each sampled token, which a diffusion model (causal = false) only bounds: "
        "leave [rlhf] out, or set model.causal = true."
    )


def split(config: RlhfConfig) -> tuple[list[dict], list[dict]]:
    """(items to train on, held-out items), no conversation in both."""
    read = examples.read_preferences if config.method in PREFERENCE else examples.read_tasks
    items = read(config.data)
    if config.heldout:
        heldout = read(config.heldout)
        kept = {asked(item) for item in heldout}
        train = [item for item in items if asked(item) not in kept]
    else:
        train = [item for item in items if not one_in_ten(item)]
        heldout = [item for item in items if one_in_ten(item)]
    if not train or not heldout:
        raise UserError(
            f"[rlhf] has {len(train)} items to train on and {len(heldout)} held-out ones; it needs both: add data, "
            "or name other heldout."
        )
    return train, heldout[: config.heldout_items]


def asked(item: dict) -> str:
    return json.dumps(item.get("messages", item.get("prompt")))


def one_in_ten(item: dict) -> bool:
    return one_in(10, asked(item), "heldout")


RLHF = Stage(name="rlhf", kind="model", version=1, config=RlhfConfig, run=run_rlhf, external=external)
