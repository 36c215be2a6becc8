"""Reads a recipe: its layers of TOML, each table by its stage's config class, then what no table can see alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import create_model, field_validator

from cluster.align.config import policy_problem
from cluster.data.filter import check_sources
from cluster.errors import UserError, nearest
from cluster.evaluate.summary import metric_names
from cluster.train.extend import extended
from cluster.train.loop import objective_problem
from flows import graph, recipe_base
from flows.recipe import BasedRecipe, Recipe
from flows.recipe_errors import Problem, RecipeError
from flows.recipe_preset import write_out
from flows.recipe_toml import Layers, read_layers
from flows.recipe_validate import validate
from model.config import ModelConfig
from model.quantization import KEPT, chosen


def recipe_class(kind: type[Recipe] = Recipe) -> type[Recipe]:
    """Such a recipe, with a table for each stage of the line that it has no field for."""
    tables = {place.table or place.name: place for place in graph.LINE}
    extra: dict[str, Any] = {
        name: (place.load().config | None, None) for name, place in tables.items() if _unknown(name)
    }
    if not extra:
        return kind
    left_out: Any = field_validator(*extra, mode="before")(lambda value: None if value is False else value)
    return create_model("Recipe", __base__=kind, __validators__={"left_out": left_out}, **extra)


def _unknown(table: str) -> bool:
    return table not in Recipe.model_fields


def read_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe by path or by the name of one that ships, with `--set` overrides on top.

    Raises:
        RecipeError: every problem, with file and line, key, what was given and what is allowed.
    """
    layers = read_layers(name, overrides)
    write_out(layers)
    if not recipe_base.has_base(layers):
        recipe = validate(recipe_class(), layers)
        problems = cross_checks(recipe, layers)
    else:
        recipe, problems = _begun(validate(recipe_class(BasedRecipe), layers), layers)
    if problems:
        raise RecipeError(layers.name, problems)
    recipe._layers = layers
    return recipe


def _begun(recipe: Recipe, layers: Layers) -> tuple[Recipe, list[Problem]]:
    """The recipe with its base's model in the place of [model], and what is wrong with it."""
    problems = list(recipe_base.conflicts(recipe, layers))
    try:
        base = recipe_base.found(recipe)
        why = recipe_base.unable(recipe, base)
    except UserError as error:
        return recipe, [*problems, Problem("base", str(layers.origin(("base",))), f'"{recipe.base}"', str(error))]
    if why is not None:
        problems.append(Problem("base", str(layers.origin(("base",))), f'"{recipe.base}"', why))
    recipe = recipe.model_copy(update={"model": base.network})
    recipe._begins = base
    return recipe, problems or cross_checks(recipe, layers)


def _keeps_wrongly(network: ModelConfig, keep: tuple[str, ...]) -> str | None:
    """What is wrong with [quantize] keep for this model; None if nothing is."""
    from model.count import meta_model
    from model.quantize.replace import linears, take_apart

    try:
        chosen(list(linears(take_apart(meta_model(network)))), keep)
    except UserError as error:
        return str(error)
    return None


def cross_checks(recipe: Recipe, layers: Layers) -> list[Problem]:
    """What no table can see alone."""
    found: list[Problem] = []

    def wrong(key: str, message: str, given: str | None = None) -> None:
        loc = tuple(int(p) if p.isdigit() else p for p in key.split("."))
        found.append(Problem(layers.key(loc), str(layers.origin(loc)), given, message))

    names = [s.name for s in recipe.sources]
    for index, name in enumerate(names):
        if name in names[:index]:
            wrong(f"sources.{index}.name", "another source has this name; each needs its own.", f'"{name}"')
    longer = recipe.extend.weights if recipe.extend else {}
    for table, weights in (("tokenizer", recipe.tokenizer.weights), ("extend", longer)):
        for name in weights:
            if name not in names:
                close = nearest(name, names)
                hint = f" Did you mean {close[0]}?" if close else ""
                wrong(f"{table}.weights.{name}", f"one of the sources: {', '.join(names)}.{hint}")
    if longer and (absent := [name for name in names if name not in longer]):
        wrong("extend.weights", f"a weight for each source, 0 to leave it out; there is none for {', '.join(absent)}.")
    try:
        check_sources(recipe.filter, names)
    except UserError as error:
        wrong("filter", str(error))
    begins = recipe._begins
    final = ("base's context" if begins else "model.max_seq_len", recipe.model.max_seq_len)
    lengths: dict[str, tuple[int, tuple[str, int]]] = {}
    if not begins:
        lengths["train.seq_len"] = (recipe.train.seq_len, final)
    if recipe.extend:
        final = ("extend.max_seq_len", recipe.extend.max_seq_len)
        lengths["extend.train.seq_len"] = (recipe.extend.train.seq_len, final)
        try:
            extended(recipe.model, recipe.extend)
        except UserError as error:
            wrong("extend", str(error))
    if recipe.evaluate.seq_len is not None:
        lengths["evaluate.seq_len"] = (recipe.evaluate.seq_len, final)
    if recipe.instruct:
        lengths["instruct.train.seq_len"] = (recipe.instruct.train.seq_len, final)
    if recipe.rlhf:
        lengths["rlhf.train.seq_len"] = (recipe.rlhf.train.seq_len, final)
    if recipe.quantize and recipe.quantize.qat:
        lengths["quantize.qat.train.seq_len"] = (recipe.quantize.qat.train.seq_len, final)
    for key, (length, (where, longest)) in lengths.items():
        if length > longest:
            raised = "" if begins and not recipe.extend else f" or raise {where}"
            wrong(key, f"at most {where} = {longest}: lower {key}{raised}.", str(length))
    if recipe.corpus.sources:
        wrong("corpus.sources", "sources are written as [[sources]], at the top level.")
    needed = replace(recipe.model, vocab_size=0).with_vocabulary(recipe.tokenizer.vocab_size).vocab_size
    if not begins and recipe.model.vocab_size not in (0, needed):
        wrong(
            "model.vocab_size",
            f"leave it out: the tokenizer sets it (tokenizer.vocab_size = {recipe.tokenizer.vocab_size}).",
            str(recipe.model.vocab_size),
        )
    trainings = {} if begins else {"train": recipe.train}
    trainings |= {"extend.train": recipe.extend.train} if recipe.extend else {}
    trainings |= {"instruct.train": recipe.instruct.train} if recipe.instruct else {}
    aware = recipe.quantize.qat if recipe.quantize else None
    trainings |= {"quantize.qat.train": aware.train} if aware else {}
    if aware and (recipe.instruct or recipe.rlhf):
        wrong("quantize.qat", "trains on text, which would undo [instruct] and [rlhf]: leave it out, for gptq or awq.")
    for key, train in trainings.items():
        problem = objective_problem(train, recipe.model)
        if problem:
            wrong(f"{key}.objective", problem, f'"{train.objective}"')
    if not begins and not recipe.model.causal and recipe.model.position == "none":
        wrong("model.position", 'with causal = false nothing else tells the order: "rope" or "learned".', '"none"')
    if recipe.rlhf:
        problem = policy_problem(recipe.model)
        if problem:
            wrong("rlhf", problem)
        if recipe.rlhf.train.objective != "next_token":
            wrong("rlhf.train.objective", "leave it out: [rlhf] method says what is optimised.")
    if recipe.quantize and recipe.quantize.keep != KEPT:
        problem = _keeps_wrongly(recipe.network, recipe.quantize.keep)
        if problem:
            wrong("quantize.keep", problem)
    if recipe.release:
        known = metric_names(names, [task.name for task in recipe.evaluate.tasks], recipe.model.causal)
        for table in ("metrics", "require"):
            for index, gate in enumerate(getattr(recipe.release, table)):
                if gate.metric not in known:
                    close = nearest(gate.metric, known)
                    hint = f"did you mean {close[0]}?" if close else f"it measures {', '.join(known) or 'nothing'}."
                    wrong(f"release.{table}.{index}.metric", f"a metric of the evaluation: {hint}", f'"{gate.metric}"')
    if recipe.rlhf is not None and recipe.instruct is None and not begins:
        wrong(
            "rlhf",
            "needs [instruct] before it: a model that never saw the chat format has nothing to reward.",
        )
    return found
