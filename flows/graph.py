"""The line as a graph: a recipe becomes steps, each a stage with its config and the steps it reads.

    corpus ─ filter ─┬─ tokenizer ─┬─ pack ─ pretrain ─ extend ─┬─ instruct ─ rlhf ─┬─ evaluate ─ release
                     └─────────────┘                            └─ evaluate-base ───┘

Where a recipe has [quantize], that (after `qat` if it has one) and `evaluate-quantized` stand before the release.

With `base = "…"` a trained model stands in the place of tokenizer and pretrain, and text may be left out.

Artifacts have roles in the line (`documents`, `tokens`, `model`, …). A place reads the newest of each role that it
names and may become the newest of others. A new stage is its own file and one place here, or `register`: its table in
the recipe, its row in the plan and on the screen, and its page follow from its config and summary classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cluster.errors import UserError, nearest
from cluster.stage import Step

if TYPE_CHECKING:
    from cluster.stage import Stage
    from flows.recipe import Recipe

Roles = Mapping[str, Step]


@dataclass(frozen=True)
class Place:
    """Where a stage stands in the line.

    Args:
        name: the step's.
        stage: "module:ATTRIBUTE", imported when a graph is made.
        reads: the roles of its inputs.
        if_there: the roles that it reads too where the line has them.
        writes: the roles that its artifact then has.
        table: the recipe's table with its config; default: its name. A stage without its table is left out.
        config: what its config is, where it is more than that table with the recipe's seed.
        wanted: whether it is in the line, given the roles so far.
    """

    name: str
    stage: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    table: str = ""
    config: Callable[[Recipe], Any] | None = None
    wanted: Callable[[Roles], bool] = lambda roles: True
    if_there: tuple[str, ...] = ()

    def load(self) -> Stage:
        module, attribute = self.stage.split(":")
        return getattr(import_module(module), attribute)

    def config_of(self, recipe: Recipe) -> Any:
        """Its config in a recipe; None: it is left out."""
        table = getattr(recipe, self.table or self.name)
        if table is None or self.config is None:
            return seeded(table, recipe)
        return self.config(recipe)


def seeded(config: Any, recipe: Recipe) -> Any:
    """With the recipe's seed if it has one, unless its table says its own."""
    if config is None or "seed" not in type(config).model_fields or "seed" in config.model_fields_set:
        return config
    return config.model_copy(update={"seed": recipe.seed})


def reading(recipe: Recipe) -> Any:
    """`[corpus]` with the recipe's sources; None without any."""
    from cluster.data.corpus import CorpusConfig

    if not recipe.sources:
        return None
    return CorpusConfig.model_validate({**recipe.corpus.model_dump(exclude_defaults=True), "sources": recipe.sources})


def weights(recipe: Recipe) -> dict[str, float]:
    return {source.name: source.weight for source in recipe.sources}


def of_text(table: str) -> Callable[[Recipe], Any]:
    """The table as it is; None where the recipe has no text."""
    return lambda recipe: getattr(recipe, table) if recipe.sources else None


def pretraining(recipe: Recipe) -> Any:
    """`[model]` and `[train]` as one config; None where a base stands in its place."""
    from cluster.train.pretrain import PretrainConfig

    if recipe.base:
        return None
    return PretrainConfig(model=recipe.model, train=recipe.train, seed=recipe.seed, weights=weights(recipe))


def extending(recipe: Recipe) -> Any:
    """`[extend]` on the sources' weights, unless it has its own."""
    longer = seeded(recipe.extend, recipe)
    return longer.model_copy(update={"weights": longer.weights or weights(recipe)})


def aware(recipe: Recipe) -> Any:
    """The training that `[quantize]` asks for, if it has a `qat`."""
    from cluster.quantize.qat import qat_config

    return qat_config(recipe.quantize, recipe.seed, weights(recipe)) if recipe.quantize else None


def evaluating_quantized(recipe: Recipe) -> Any:
    """`[evaluate]`, once more, of a quantized model."""
    return recipe.evaluate if recipe.quantize else None


def released(recipe: Recipe) -> Any:
    """`[release]` under the recipe's name and with its tracking, where it has none of its own."""
    config = recipe.release
    assert config is not None
    return config.model_copy(
        update={
            "name": config.name or recipe.name,
            "tracking_uri": config.tracking_uri or recipe.tracking.uri,
            "experiment": config.experiment or recipe.tracking.experiment or recipe.name,
        }
    )


def aligned(roles: Roles) -> bool:
    """Whether the model has changed since it was evaluated."""
    return roles["model"] is not roles["evaluation"].inputs["model"]


def as_written(table: str) -> Callable[[Recipe], Any]:
    """The table as it is: its seed, if it has one, is its own."""
    return lambda recipe: getattr(recipe, table)


LINE: list[Place] = [
    Place("base", "cluster.interop.base:STAGE", (), ("model", "tokenizer"), config=lambda recipe: recipe._begins),
    Place("corpus", "cluster.data.corpus:STAGE", (), ("corpus",), config=reading),
    Place("filter", "cluster.data.filter:STAGE", ("corpus",), ("documents",), config=of_text("filter")),
    Place(
        "tokenizer", "cluster.data.tokenizer.training:STAGE", ("documents",), ("tokenizer",),
        config=lambda recipe: None if recipe.base else recipe.tokenizer,
    ),
    Place("pack", "cluster.data.pack:STAGE", ("documents", "tokenizer"), ("tokens",), config=of_text("pack")),
    Place(
        "pretrain", "cluster.train.pretrain:STAGE", ("tokens", "tokenizer"), ("model",),
        table="train", config=pretraining,
    ),
    Place("extend", "cluster.train.extend:STAGE", ("model", "tokens"), ("model",), config=extending),
    Place(
        "evaluate-base", "cluster.evaluate.evaluate:STAGE", ("model",), ("base_evaluation", "evaluation"),
        table="evaluate", config=as_written("evaluate"), if_there=("tokens",),
    ),
    Place("instruct", "cluster.align.instruct:STAGE", ("model",), ("model",), if_there=("tokens",)),
    Place("rlhf", "cluster.align.rlhf:STAGE", ("model",), ("model",)),
    Place(
        "evaluate", "cluster.evaluate.evaluate:STAGE", ("model",), ("evaluation",),
        config=as_written("evaluate"), wanted=aligned, if_there=("tokens",),
    ),
    Place("qat", "cluster.quantize.qat:STAGE", ("model", "tokens"), ("model",), table="quantize", config=aware),
    Place("quantize", "cluster.quantize.quantize:STAGE", ("model",), ("model",), if_there=("tokens",)),
    Place(
        "evaluate-quantized", "cluster.evaluate.evaluate:STAGE", ("model",), ("evaluation",), table="evaluate",
        config=evaluating_quantized, wanted=aligned, if_there=("tokens",),
    ),
    Place(
        "release", "cluster.release.release:STAGE", ("model", "base_evaluation", "evaluation"), ("release",),
        config=released,
    ),
]  # fmt: skip


def register(place: Place, after: str) -> None:
    """Put another stage into the line, after the place named `after`."""
    names = [p.name for p in LINE]
    LINE.insert(names.index(after) + 1, place)


def graph(recipe: Recipe) -> list[Step]:
    """The steps of a recipe, each after those it reads. Runs nothing."""
    steps: list[Step] = []
    roles: dict[str, Step] = {}
    for place in LINE:
        config = place.config_of(recipe)
        if config is None or not place.wanted(roles):
            continue
        read = (*place.reads, *(role for role in place.if_there if role in roles))
        step = Step(place.name, place.load(), config, {role: roles[role] for role in read})
        steps.append(step)
        roles |= dict.fromkeys(place.writes, step)
    return steps


def until(steps: list[Step], name: str | None) -> list[Step]:
    """`name` and everything it needs, in order; all steps for None.

    Raises:
        UserError: there is no such step.
    """
    if name is None:
        return steps
    by_name = {s.name: s for s in steps}
    if name not in by_name:
        close = nearest(name, by_name)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(f"--until {name}: this recipe has no such stage.{hint} Its stages: {', '.join(by_name)}.")
    needed: set[str] = set()

    def visit(step: Step) -> None:
        if step.name not in needed:
            needed.add(step.name)
            for inner in step.inputs.values():
                visit(inner)

    visit(by_name[name])
    return [s for s in steps if s.name in needed]
