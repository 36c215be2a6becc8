"""Of pydantic's errors those that are a person's problems: one for each thing that is wrong.

Pydantic tells more than what is wrong. A value of several kinds (`int | "auto"`) that is none of them has an error for
each kind; a list whose entry is wrong is too short as well, since that entry doesn't count; and a key that is mistyped
is unknown under its name and missing under the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.errors import nearest
from flows.recipe_errors import Loc

UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def one_for_each(values: Any, errors: Sequence[Any]) -> list[Any]:
    """The errors without those that follow from another.

    A value of several kinds leaves one error, with those of its other kinds as `others`.
    """
    kept = [e for e in errors if not _follows(e, errors)]
    result: list[Any] = []
    for error in kept:
        point = _union_at(values, error)
        if point is None:
            result.append(error)
            continue
        same = [e for e in kept if _union_at(values, e) == point]
        inside = [e for e in same if len(within(values, e["loc"])) > len(point)]
        if inside:  # it is of that kind, and something in it is wrong
            result += [error] if error in inside else []
        elif error is same[0]:
            result.append({**error, "loc": point, "first": error, "others": same[1:]} if same[1:] else error)
    return result


def within(values: Any, loc: Loc) -> Loc:
    """`loc` without the parts that pydantic adds for the members of a union."""
    return tuple(part for part, there in _walk(values, loc) if there)


def _union_at(values: Any, error: Any) -> Loc | None:
    """Where a value stands of whose kinds the error names one: the part of its place that is not in the recipe."""
    walked = _walk(values, error["loc"][:-1] if error["type"] == "missing" else error["loc"])
    first = next((number for number, (_, there) in enumerate(walked) if not there), None)
    return None if first is None else tuple(error["loc"][:first])


def _walk(values: Any, loc: Loc) -> list[tuple[str | int, bool]]:
    """Each part of `loc`, and whether the recipe has it there."""
    found: list[tuple[str | int, bool]] = []
    here: Any = values
    for part in loc:
        there = _has(here, part)
        here = here[part] if there else here
        found.append((part, there))
    return found


def _has(values: Any, part: str | int) -> bool:
    if isinstance(values, list | tuple):
        return isinstance(part, int) and part < len(values)
    return isinstance(values, dict) and part in values


def _follows(error: Any, errors: Sequence[Any]) -> bool:
    loc = error["loc"]
    if error["type"] == "too_short":
        enough = len(error["input"]) >= error["ctx"]["min_length"]
        return enough and any(len(e["loc"]) > len(loc) and e["loc"][: len(loc)] == loc for e in errors)
    if error["type"] == "missing":
        beside = [str(e["loc"][-1]) for e in errors if e["type"] in UNKNOWN and e["loc"][:-1] == loc[:-1]]
        return bool(nearest(str(loc[-1]), beside))
    return False
