"""What a config's values must be, refused in words for a person; and the mark of fields that change no result."""

from typing import Any

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
