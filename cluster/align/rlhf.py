"""RLHF: policy optimisation against a verifiable reward, or on a set of preferences, with a KL to the reference.

    policy (grpo, dr_grpo, …)   prompts of tasks -> group_size sampled answers each -> the verifier's reward ->
                                advantage within the group -> clipped policy loss + kl_coef * KL(policy, reference)
    preference (dpo, ipo, …)    (prompt, chosen, rejected) -> a loss on the margin over the reference's

The reference is the instructed model. Rewards before and after are measured on held-out prompts, none of which is
ever trained on. The loop is model/trainer.py again: a rollout is a batch, made by the policy at that step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from cluster.align.check import check_rlhf
from cluster.align.config import PREFERENCE, RlhfConfig, policy_problem
from cluster.align.cost import rlhf_cost
from cluster.align.split import split
from cluster.data.examples import examples
from cluster.errors import UserError
from cluster.stage import Stage, Workspace
from cluster.store.artifact import Artifact
from cluster.store.source import located
from cluster.train.export import export_model, progress
from cluster.train.fit import fit
from cluster.train.loop import run_trainer
from cluster.train.summary import TrainingSummary
from cluster.train.worker import StoppedAt, Worker

BEFORE, AFTER = "_before", "_after"


@dataclass(frozen=True)
class RlhfSummary(TrainingSummary):
    """The held-out scores before and after, by name, and the items that they are of.

    too_long: pairs that are in neither, since a row doesn't hold them.
    """

    train_items: int = 0
    heldout_items: int = 0
    too_long: int = 0
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        flat = super().values()
        before, after = flat.pop("before"), flat.pop("after")
        return flat | {f"{n}{BEFORE}": v for n, v in before.items()} | {f"{n}{AFTER}": v for n, v in after.items()}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        scores = {
            name: {k.removesuffix(end): float(v) for k, v in values.items() if k.endswith(end)}
            for name, end in (("before", BEFORE), ("after", AFTER))
        }
        return super().read({**values, **scores})

    def words(self) -> str:
        left_out = f"{self.too_long} pairs too long for a row left out" if self.too_long else ""
        return ", ".join(filter(None, [super().words(), left_out]))

    def closing(self) -> Sequence[str]:
        """What reinforcement learning changed on tasks that it never trained on."""
        return [
            f"rlhf: {name.replace('_', ' ')} {before:.3f} → {self.after[name]:.3f} "
            f"({self.after[name] - before:+.3f}) on {self.heldout_items} held-out prompts"
            for name, before in self.before.items()
            if name in self.after
        ]


def gist(config: RlhfConfig) -> str:
    return f"{config.method}, {config.train.steps} steps"


def external(config: RlhfConfig) -> dict[str, str]:
    return {f"data:{url}": examples.digest(url) for url in (*config.data, *config.heldout)}


@dataclass(frozen=True)
class Alignment:
    """What a worker is given."""

    config: RlhfConfig
    model: Artifact


def run_rlhf(ws: Workspace) -> RlhfSummary:
    """Optimise the input model. Writes a model artifact; the summary has the held-out score before and after."""
    config: RlhfConfig = ws.config
    urls = {name: tuple(map(located, getattr(config, name))) for name in ("tasks", "preferences", "heldout")}
    given = Alignment(config.model_copy(update=urls), ws.inputs["model"])  # a worker has a folder of its own
    result = fit(ws, rlhf_worker, given, progress(ws, config.train.steps))
    return export_model(ws, given.model.path(), result, RlhfSummary)


def rlhf_worker(worker: Worker, given: Alignment) -> dict | StoppedAt:
    from cluster.align.preferences import Pairs
    from cluster.align.rollout import Rollouts
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.checkpoint import load_model

    config, folder = given.config, given.model.path()
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
    if isinstance(summary, StoppedAt):
        return summary
    after = learner.score()
    worker.metrics(config.train.steps, after)
    summary |= {f"{name}_before": value for name, value in before.items()}
    summary |= {f"{name}_after": value for name, value in after.items()}
    too_long = learner.too_long if isinstance(learner, Pairs) else 0
    return summary | {
        "train_items": len(learner.train),
        "heldout_items": len(learner.heldout),
        "too_long": too_long,
    }


STAGE = Stage(
    name="rlhf",
    kind="model",
    version=2,
    config=RlhfConfig,
    run=run_rlhf,
    summary=RlhfSummary,
    external=external,
    cost=rlhf_cost,
    gist=gist,
    check=check_rlhf,
)
