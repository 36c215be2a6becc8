"""What a config's values must be, refused in words for a person; and the mark of fields that change no result."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from model.errors import UserError, nearest

HOW: dict[str, Any] = {"identity": False}


def choose(name: str, given: object, allowed: tuple[str, ...]) -> None:
    """UserError with the nearest right name if `given` is not one of `allowed`."""
    if given not in allowed:
        near = nearest(str(given), allowed)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{name} = {given!r} is not one of {', '.join(map(repr, allowed))}{hint}")


def at_least(name: str, given: float | None, least: float) -> None:
    """UserError if `given` is a number below `least`."""
    if given is not None and not given >= least:
        raise UserError(f"{name} = {given} is too small: it must be at least {least}")


def positive(name: str, given: float | None) -> None:
    """UserError if `given` is a number that is not greater than 0, or infinite."""
    if given is not None and not 0 < given < float("inf"):
        raise UserError(f"{name} = {given} must be greater than 0{' and finite' * (given > 0)}")


def check_kinds(kind: type, values: Mapping[str, Any], within: str = "") -> None:
    """Raises UserError for a value, from JSON, of another kind than the dataclass declares for its field."""
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"{within}{name} is no key of it")
        if not _is_of(value, hints[name], f"{within}{name}."):
            raise UserError(f"{within}{name} = {str(value)[:80]} is of another kind than it must be")


def _is_of(value: Any, hint: Any, within: str) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_of(value, one, within) for one in arguments)
    if origin is Literal:
        return isinstance(value, tuple({type(one) for one in arguments}))  # which of them: said by whoever knows them
    if origin in (tuple, list):
        return isinstance(value, list | tuple) and all(_is_of(one, arguments[0], within) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is_of(one, arguments[1], within) for one in value.values())
    if is_dataclass(hint):
        if isinstance(value, dict):
            check_kinds(hint, value, within)  # type: ignore[arg-type]
        return isinstance(value, dict | hint)  # type: ignore[arg-type]
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
