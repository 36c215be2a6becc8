"""What a wrong recipe says to the person who wrote it.

The key, where it was written, what was given, what is allowed, and the nearest right name; all of a recipe's problems
at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError

Loc = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `key` as a person writes it, `where` it was written, and the sentence."""

    key: str
    where: str
    given: str | None
    message: str

    def __str__(self) -> str:
        lines = [f"{self.key}  ({self.where})" if self.where else self.key]
        if self.given is not None:
            lines.append(f"  given:   {self.given}")
        lines.append(f"  allowed: {self.message}")
        return "\n".join(lines)


class RecipeError(UserError):
    """A recipe that cannot run. `str()` is the whole text for the person; `problems` are its entries."""

    def __init__(self, recipe: str, problems: Iterable[Problem] | str):
        self.recipe = recipe
        self.problems = [] if isinstance(problems, str) else list(problems)
        if isinstance(problems, str):
            text = f"{recipe}: {problems}"
        else:
            count = len(self.problems)
            head = f"{recipe}: {count} problem{'s' if count != 1 else ''}, nothing was started."
            text = "\n\n".join([head, *(str(p) for p in self.problems)])
        super().__init__(text)


def show_value(value: Any) -> str:
    """A value as it would stand in TOML, shortened."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str):
        text = f'"{value}"'
    elif isinstance(value, Mapping):
        text = "a table {" + ", ".join(f"{k} = {show_value(v)}" for k, v in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(show_value(v) for v in value) + "]"
    else:
        text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."


def kind_of(value: Any) -> str:
    """What a TOML value is, in plain words."""
    for types_, word in (
        (bool, "true/false"),
        (int, "a whole number"),
        (float, "a number"),
        (str, "a text"),
        (Mapping, "a table"),
        ((list, tuple), "a list"),
    ):
        if isinstance(value, types_):
            return word
    return type(value).__name__


def given(value: Any) -> str:
    shown = show_value(value)
    return shown if isinstance(value, Mapping | bool) else f"{shown} ({kind_of(value)})"
