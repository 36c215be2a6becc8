"""Layers of a recipe -> a validated model, or every problem at once in plain words.

The schema is pydantic models and dataclasses (a stage's own config classes); nothing here knows which.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cluster.errors import nearest
from flows.recipe_errors import Loc, Problem, RecipeError, given
from flows.recipe_toml import Layers
from flows.recipe_union import UNKNOWN, one_for_each, within

M = TypeVar("M", bound=BaseModel)


def validate(schema: type[M], layers: Layers) -> M:
    """The recipe as `schema`.

    Raises:
        RecipeError: with every problem pydantic found, each at its key and origin.
    """
    try:
        return schema.model_validate(completed(schema, layers.values))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if _texts_typed_as_values(layers, errors):
            return validate(schema, layers)
        problems = {str(p): p for e in one_for_each(layers.values, errors) for p in [_problem(schema, layers, e)]}
        raise RecipeError(layers.name, problems.values()) from None


def completed(table: Any, values: Any) -> Any:
    """`values` with what a partly given inner table leaves out, as its *place* has it by default.

    `[instruct.train] lr = 1e-4` keeps the steps of instruct's own default, not those of TrainConfig.
    """
    if not isinstance(values, dict) or not is_table(table):
        return values
    annotations, result = keys_of(table), dict(values)
    for key, value in values.items():
        inner = unwrap(annotations.get(key))
        if not isinstance(value, dict) or not is_table(inner):
            continue
        default = _default(table, key)
        result[key] = completed(inner, value)
        if default is not None and is_table(type(default)):
            fresh = _default_of_class(type(default))
            for name in keys_of(type(default)):
                own = getattr(default, name)
                if name not in value and (fresh is None or own != getattr(fresh, name)):
                    result[key][name] = own
    return result


def _default(table: Any, key: str) -> Any:
    """The default instance of a key, None where it has none."""
    if issubclass(table, BaseModel):
        return table.model_fields[key].get_default(call_default_factory=True)
    field = next(f for f in dataclasses.fields(table) if f.name == key)
    return None if field.default is dataclasses.MISSING else field.default


def _default_of_class(table: Any) -> Any:
    try:
        return table()
    except (TypeError, ValueError):  # it has required keys
        return None


def _texts_typed_as_values(layers: Layers, errors: list[Any]) -> bool:
    """`--set name=5` is TOML for a number, but meant as a text where only a text is allowed."""
    changed = False
    for error in errors:
        loc = within(layers.values, error["loc"])
        raw = layers.origin(loc).raw if loc in layers.origins else None
        if error["type"] == "string_type" and raw is not None and not isinstance(error["input"], str):
            parent = layers.value(loc[:-1])
            parent[loc[-1]] = raw
            changed = True
    return changed


def _problem(schema: type[BaseModel], layers: Layers, error: Any) -> Problem:
    loc, kind = error["loc"], error["type"]
    if kind == "missing":
        where = within(layers.values, loc[:-1])
        return Problem(layers.key(loc), str(layers.origin(where)), "nothing", sentence(error))
    loc = within(layers.values, loc) or loc
    where = str(layers.origin(loc))
    if kind in UNKNOWN:
        table = ".".join(str(p) for p in loc[:-1] if not isinstance(p, int))
        return Problem(layers.key(loc), where, given(error["input"]), unknown_key(schema, loc, table))
    whole_table = isinstance(error["input"], Mapping | BaseModel) or type(error["input"]).__name__ == "ArgsKwargs"
    if kind in ("value_error", "assertion_error") and whole_table:
        text = sentence(error)
        where = str(layers.origin(_first_named(schema, layers, loc, text)))
        return Problem(layers.key(loc) or "recipe", where, None, text)
    return Problem(layers.key(loc), where, given(error["input"]), sentence(error))


def _first_named(schema: type[BaseModel], layers: Layers, loc: Loc, text: str) -> Loc:
    """The key of the table at `loc` that `text` names first and that the recipe gives; else the table."""
    values = layers.value(loc)
    given_keys = [k for k in keys_of(table_at(schema, loc)) if isinstance(values, dict) and k in values]
    places = {k: re.search(rf"\b{re.escape(k)}\b", text) for k in given_keys}
    named = sorted((m.start(), k) for k, m in places.items() if m)
    return (*loc, named[0][1]) if named else loc


# --- what keys and types a place in the recipe allows ------------------------------------------------------


def unwrap(annotation: Any) -> Any:
    """The table class inside Optional, Annotated, list and tuple; else the annotation."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif origin in (typing.Union, types.UnionType):
            inner = [a for a in typing.get_args(annotation) if a is not type(None)]
            tables = [a for a in inner if is_table(unwrap(a))]
            if len(inner) != 1 and not tables:
                return annotation
            annotation = tables[0] if tables else inner[0]
        elif origin in (list, tuple) and typing.get_args(annotation):
            annotation = typing.get_args(annotation)[0]
        else:
            return annotation


def is_table(annotation: Any) -> bool:
    return isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation))


def keys_of(table: Any) -> dict[str, Any]:
    """Every key a table allows, with its annotation; {} for what is not a table."""
    if not is_table(table):
        return {}
    if issubclass(table, BaseModel):
        return {n: f.annotation for n, f in table.model_fields.items()}
    hints = typing.get_type_hints(table, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(table) if f.init}


def table_at(schema: Any, loc: Loc) -> Any:
    """The class that describes the table at `loc`."""
    table = unwrap(schema)
    for part in loc:
        if isinstance(part, int):
            continue
        keys = keys_of(table)
        if part not in keys:
            return None
        table = unwrap(keys[part])
    return table


def all_keys(schema: Any, prefix: str = "") -> dict[str, str]:
    """{dotted key: last part} of every key in every table of the schema."""
    found: dict[str, str] = {}
    for name, annotation in keys_of(unwrap(schema)).items():
        dotted = f"{prefix}{name}"
        found[dotted] = name
        inner = unwrap(annotation)
        if is_table(inner):
            found |= all_keys(inner, f"{dotted}.")
    return found


def unknown_key(schema: Any, loc: Loc, name_of_table: str) -> str:
    """For a key nobody reads: the nearest here, then elsewhere, then all keys of the table."""
    word = str(loc[-1])
    here = list(keys_of(table_at(schema, loc[:-1])))
    table = f"[{name_of_table}]" if name_of_table else "the recipe's top level"
    sentence = f"no such key in {table}."
    close = nearest(word, here)
    every = all_keys(schema)  # dotted -> the last part
    same = [d for d, last in every.items() if last == word and last not in here]
    if close:
        sentence += f" Did you mean {close[0]}?"
    if same:
        sentence += f" {word} belongs to {_and([f'[{d.rpartition(chr(46))[0] or d}]' for d in same], 'or')}."
    elif not close:
        far = nearest(word, set(every.values()))
        if far:
            dotted = next(d for d, last in every.items() if last == far[0])
            sentence += f" Did you mean {dotted}?"
    return sentence + f" Its keys: {', '.join(sorted(here))}."


# --- pydantic's errors in plain words -----------------------------------------------------------------------

_PLAIN = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text in quotes",
    "list_type": "a list, [...]",
    "tuple_type": "a list, [...]",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dataclass_type": "a table",
    "none_required": "nothing",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}


def sentence(error: Mapping[str, Any]) -> str:
    """What is allowed, for one pydantic error (unknown keys have `unknown_key`)."""
    if "others" in error:  # a value of several kinds, and it is none of them
        return ", or ".join(sentence(e).rstrip(".") for e in (error["first"], *error["others"])) + "."
    kind, context, value = error["type"], error.get("ctx") or {}, error.get("input")
    if kind in _PLAIN:
        return f"must be {_PLAIN[kind]}."
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"must be {words} {context[name]}."
    if kind == "missing":
        return "this key is required."
    if kind in ("literal_error", "enum"):
        expected = str(context.get("expected", ""))
        choices = [c.strip(" '\"") for c in expected.replace(" or ", ", ").split(",") if c.strip()]
        close = nearest(str(value), choices)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"one of {', '.join(choices)}.{hint}"
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", error["msg"])).strip()
    if kind in ("too_short", "string_too_short"):
        return f"must have at least {_things(context['min_length'], kind)}."
    if kind in ("too_long", "string_too_long"):
        return f"must have at most {_things(context['max_length'], kind)}."
    return error["msg"][:1].lower() + error["msg"][1:] + "."


def _things(n: int, kind: str) -> str:
    one, several = ("character", "characters") if kind.startswith("string") else ("entry", "entries")
    return f"{n} {one if n == 1 else several}"


def _and(words: list[str], word: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {word} {words[-1]}"
