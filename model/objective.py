"""The registry of training objectives: a name in `[train] objective` to what it is and to the class that computes it.

What is known without torch stands here, so that reading a recipe never imports it; the class has the rest:

    Class(train, model, seed=0)                   a TrainConfig, a ModelConfig, the run's seed
    batch(rows, samples_B) -> NamedTuple          what it makes of rows of packed documents (next_token.py's `Batch`);
                                                  samples_B: each row's number among the run's samples, that noise may
                                                  depend on, so that ranks and resumes change nothing
    loss(decoder, micro_batch) -> (sum of losses, number that it is divided by, sums to report)

A new objective is one file and one entry here. Losses whose batches are not rows of documents, those of
preferences and policies, are no `[train] objective`: [rlhf] has them.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal


@dataclass(frozen=True)
class Objective:
    """What an objective asks of rows and of a model, and what a model trained with it can do."""

    code: str  # "module:Class"
    ahead: int  # how many tokens a target is ahead of its token, in the rows it reads
    causal: bool  # what model.causal must be
    why: str  # completes "NAME …": the reason of `causal`
    generates: Literal["causal", "unmasking"]
    likelihood: Literal["exact", "bound"]


OBJECTIVES: dict[str, Objective] = {
    "next_token": Objective(
        "model.objectives.next_token:NextToken",
        ahead=1,
        causal=True,
        why="predicts a token that a model with causal = false sees",
        generates="causal",
        likelihood="exact",
    ),
    "masked_diffusion": Objective(
        "model.objectives.masked_diffusion:MaskedDiffusion",
        ahead=0,
        causal=False,
        why="fills in tokens from both sides",
        generates="unmasking",
        likelihood="bound",
    ),
}


def objective_class(name: str) -> type[Any]:
    """The class behind the name of a registered objective."""
    module, attribute = OBJECTIVES[name].code.split(":")
    return getattr(import_module(module), attribute)


def problem(name: str, causal: bool) -> str | None:
    """Why a model with this `causal` can't be trained with an objective; None if it can."""
    objective = OBJECTIVES[name]
    if objective.causal == causal:
        return None
    others = " or ".join(f'"{other}"' for other, o in OBJECTIVES.items() if o.causal == causal)
    alternative = f", or train it with objective = {others}" if others else ""
    return f"{name} {objective.why}: it needs model.causal = {str(objective.causal).lower()}{alternative}."


def for_models(causal: bool) -> Objective:
    """An objective for models with this `causal`: how they generate, and what likelihood they have."""
    return next(o for o in OBJECTIVES.values() if o.causal == causal)
