"""The line as a graph: a recipe becomes steps, each a stage with its config and the steps it reads.

    corpus ─ filter ─┬─ tokenizer ─┬─ pack ─ pretrain ─ extend ─┬─ instruct ─ rlhf ─┬─ evaluate ─ release
                     └─────────────┘                            └─ evaluate-base ───┘

A new stage is one line here. Nothing in this file runs anything.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cluster.errors import UserError, nearest

if TYPE_CHECKING:
    from cluster.stage import Stage, Step, Workspace
    from flows.recipe import Recipe


def graph(recipe: Recipe) -> list[Step]:
    """The steps of a recipe, each after those it reads."""
    from cluster.align import instruct, rlhf
    from cluster.data import corpus, filter, pack
    from cluster.data.tokenizer import training as tokenizer
    from cluster.evaluate import evaluate
    from cluster.release import release
    from cluster.train import extend
    from cluster.train import pretrain as train

    line = Line()
    reading = corpus.CorpusConfig.model_validate(
        {**recipe.corpus.model_dump(exclude_defaults=True), "sources": recipe.sources}
    )
    weights = {source.name: source.weight for source in recipe.sources}
    pretraining = train.PretrainConfig(model=recipe.model, train=recipe.train, seed=recipe.seed, weights=weights)

    raw = line.add("corpus", corpus.STAGE, reading)
    documents = line.add("filter", filter.STAGE, recipe.filter, corpus=raw)
    pieces = line.add("tokenizer", tokenizer.STAGE, recipe.tokenizer, documents=documents)
    tokens = line.add("pack", pack.STAGE, recipe.pack, documents=documents, tokenizer=pieces)
    base = line.add("pretrain", train.PRETRAIN, pretraining, tokens=tokens, tokenizer=pieces)
    if recipe.extend:
        longer = seeded(recipe.extend, recipe).model_copy(update={"weights": recipe.extend.weights or weights})
        base = line.add("extend", extend.EXTEND, longer, model=base, tokens=tokens)
    before = line.add("evaluate-base", evaluate.STAGE, recipe.evaluate, model=base, tokens=tokens)
    model, after = base, before
    if recipe.instruct:
        model = line.add("instruct", instruct.INSTRUCT, seeded(recipe.instruct, recipe), model=model, tokens=tokens)
    if recipe.rlhf:
        model = line.add("rlhf", rlhf.RLHF, seeded(recipe.rlhf, recipe), model=model)
    if model is not base:
        after = line.add("evaluate", evaluate.STAGE, recipe.evaluate, model=model, tokens=tokens)
    if recipe.release:
        named = released(recipe)
        line.add("release", release.STAGE, named, model=model, base_evaluation=before, evaluation=after)
    return line.steps


class Line:
    """Steps in the order they were added."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def add(self, name: str, stage: Stage, config: Any, **inputs: Step) -> Step:
        from cluster.stage import Step

        step = Step(name=name, stage=announced(stage), config=config, inputs=inputs)
        self.steps.append(step)
        return step


def announced(stage: Stage) -> Stage:
    """The same stage, which tells `context["begin"]` where it works before it begins."""

    def run(ws: Workspace) -> dict:
        begin = ws.context.get("begin")
        if begin is not None:
            begin(stage, ws)
        return stage.run(ws)

    return replace(stage, run=run)


def seeded(config: Any, recipe: Recipe) -> Any:
    """With the recipe's seed, unless its table has one of its own."""
    return config if "seed" in config.model_fields_set else config.model_copy(update={"seed": recipe.seed})


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


def until(steps: list[Step], name: str | None) -> list[Step]:
    """`name` and everything it needs, in order; all steps for None.

    Raises:
        ValueError: there is no such step.
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
