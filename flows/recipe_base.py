"""`base = "models:/NAME/1"`: a recipe that begins with a trained model in the place of a pretraining of its own.

The model brings its weights, tokenizer and sizes, so [model], [tokenizer] and [train] have no place beside it. What a
recipe inherits of these is taken away by `train = false` and the like. [[sources]] may be left out: they give the text
that is replayed, that `bpb` is measured on, and that [extend] trains on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cluster.errors import UserError
from flows.recipe_errors import Problem
from flows.recipe_toml import Layers

if TYPE_CHECKING:
    from cluster.interop.base import BaseConfig
    from flows.recipe import Recipe

BROUGHT = {"model": "its own sizes", "tokenizer": "its own tokenizer", "train": "its own weights"}
OF_TEXT = ("corpus", "filter", "pack")


def has_base(layers: Layers) -> bool:
    """Whether the recipe names a base; then what it has taken away of the tables that a base replaces is gone."""
    if layers.values.get("base") in (None, False):
        return False
    for table in BROUGHT:
        if layers.values.get(table) is False:
            del layers.values[table]
    return True


def found(recipe: Recipe) -> BaseConfig:
    """The model that `base` means now. Raises UserError, or ConnectionError where MLflow doesn't answer."""
    from cluster.interop.base import find_base
    from cluster.tracking.place import locate

    assert recipe.base is not None
    return find_base(recipe.base, locate(recipe.store.url, recipe.tracking.uri))


def conflicts(recipe: Recipe, layers: Layers) -> Iterator[Problem]:
    """Keys that have no place beside `base`, or none without the sources that a base makes optional."""

    def problem(key: str, message: str) -> Problem:
        loc = tuple(int(p) if p.isdigit() else p for p in key.split("."))
        return Problem(layers.key(loc), str(layers.origin(loc)), None, message)

    for table, own in BROUGHT.items():
        if table in layers.values:
            yield problem(table, f"leave it out, or write {table} = false where it is inherited: base brings {own}.")
    if recipe.sources:
        for number, source in enumerate(recipe.sources):
            if "weight" in source.model_fields_set and recipe.extend is None:
                yield problem(f"sources.{number}.weight", "leave it out: nothing is trained by it without [extend].")
        return
    for table in OF_TEXT:
        if table in layers.values:
            yield problem(table, "leave it out: without [[sources]] there is no text to read.")
    if recipe.extend is not None:
        yield problem("extend", "needs [[sources]]: a longer context is learned from text.")
    if recipe.instruct is not None and recipe.instruct.replay:
        yield problem("instruct.replay", "needs [[sources]]: their text is what is replayed.")
    if recipe.quantize is not None and recipe.quantize.calibrated:
        yield problem("quantize.method", f"{recipe.quantize.method} needs [[sources]]: it looks at their text.")
    if recipe.quantize is not None and recipe.quantize.qat is not None:
        yield problem("quantize.qat", "needs [[sources]]: it trains on their text.")


def quantized(base: BaseConfig) -> str | None:
    """The kind of a base that is quantized, e.g. int8."""
    from pathlib import Path

    from cluster.interop.base import is_gguf, is_theirs
    from model.checkpoint import load_quantization

    source = Path(base.source)
    found = None if is_gguf(source) or is_theirs(source) else load_quantization(source)
    return found.kind if found else None


def unable(recipe: Recipe, base: BaseConfig) -> str | None:
    """Why this base can't be trained on or quantized, or has no conversations to learn from; None if it can."""
    tables = [name for name in ("extend", "instruct", "rlhf", "quantize") if getattr(recipe, name) is not None]
    kind = quantized(base) if tables else None
    if kind is not None:
        return f"{base.name} is quantized ({kind}), and [{tables[0]}] needs weights: name the model it was made from."
    if recipe.instruct is None and recipe.rlhf is None:
        return None
    from cluster.data.tokenizer.chat import chats
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from cluster.interop.base import tokenizer_of

    try:
        with tokenizer_of(base) as folder:
            tokenizer = Tokenizer(folder)
        if tokenizer.template is not None:
            problem = tokenizer.template.problem()
            return problem and f"{base.name}: {problem}"
        if chats(tokenizer):
            return None
    except UserError as error:
        return str(error)
    return (
        f"{base.name} has no chat template, so [instruct] and [rlhf] can't write a conversation for it: put "
        "its chat_template.jinja into the folder that it is imported from."
    )
