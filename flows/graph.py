"""The line as a graph: a recipe becomes steps, each a stage with its config and the steps it reads.

    sources ─ corpus ─ filter ─┬─ tokenizer ─ pack ─ pretrain ─┬─ instruct ─ rlhf ─┬─ release ─ models:/NAME@champion
                               └───────────────┘               └─ evaluate-base ───┴─ evaluate

A new stage is one line here. Nothing in this file runs anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.recipe_errors import nearest

if TYPE_CHECKING:
    from cluster.stage import Stage, Step
    from flows.recipe import Recipe


def graph(recipe: Recipe) -> list[Step]:
    """The steps of a recipe, each after those it reads."""
    from cluster import align, evaluate, release, train
    from cluster.data import corpus, filter, pack, tokenizer

    steps: list[Step] = []

    def step(name: str, stage: Stage, config: Any, **inputs: Step) -> Step:
        from cluster.stage import Step

        steps.append(Step(name=name, stage=stage, config=config, inputs=inputs))
        return steps[-1]

    weights = {source.name: source.weight for source in recipe.sources}
    pretraining = train.PretrainConfig(
        model=recipe.model, train=recipe.train, seed=recipe.seed, weights=weights
    )

    raw = step("corpus", corpus.STAGE, corpus.CorpusConfig(sources=list(recipe.sources)))
    documents = step("filter", filter.STAGE, recipe.filter, corpus=raw)
    pieces = step("tokenizer", tokenizer.STAGE, recipe.tokenizer, documents=documents)
    tokens = step("pack", pack.STAGE, recipe.pack, documents=documents, tokenizer=pieces)
    base = step("pretrain", train.PRETRAIN, pretraining, tokens=tokens, tokenizer=pieces)
    before = step("evaluate-base", evaluate.STAGE, recipe.evaluate, model=base, tokens=tokens)
    model, after = base, before
    if recipe.instruct:
        model = step("instruct", align.INSTRUCT, recipe.instruct, model=model)
    if recipe.rlhf:
        model = step("rlhf", align.RLHF, recipe.rlhf, model=model)
    if model is not base:
        after = step("evaluate", evaluate.STAGE, recipe.evaluate, model=model, tokens=tokens)
    if recipe.release:
        step(
            "release", release.STAGE, recipe.release, model=model, base_evaluation=before, evaluation=after
        )  # fmt: skip
    return steps


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
        raise ValueError(
            f"--until {name}: this recipe has no such stage.{hint} Its stages: {', '.join(by_name)}."
        )
    needed: set[str] = set()

    def visit(step: Step) -> None:
        if step.name not in needed:
            needed.add(step.name)
            for inner in step.inputs.values():
                visit(inner)

    visit(by_name[name])
    return [s for s in steps if s.name in needed]
