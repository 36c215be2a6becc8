"""The filters that a recipe can name, and their thresholds in it.

    [filter] rules = ["gopher", "fineweb"]            names, in the order in which they judge
    [filter.thresholds.fineweb] short_line = 40       a table for each filter: its config class

A new filter is one file (see contract.py) and one line here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import GetPydanticSchema, PlainValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticKnownError, core_schema

from cluster.data.filters import contract
from cluster.data.filters.c4 import C4
from cluster.data.filters.code import Code
from cluster.data.filters.contract import Filter, Verdict
from cluster.data.filters.fineweb import FineWeb
from cluster.data.filters.gopher import GopherQuality, GopherRepetition
from cluster.data.filters.words import batches

FILTERS: dict[str, type[Filter[Any]]] = {}
SETS = {"gopher": ("gopher_quality", "gopher_repetition")}  # one name for several filters


class Thresholds(contract.Thresholds):
    """Each filter's numbers, e.g. [filter.thresholds.gopher_quality] min_words = 30. `register` adds its fields."""


def register(kind: type[Filter[Any]]) -> None:
    """Make a filter known: its name to `rules`, its config class to `thresholds`."""
    if kind.name in FILTERS or kind.name in SETS:
        raise ValueError(f"There is a filter {kind.name!r} already.")
    FILTERS[kind.name] = kind
    _declare()


def _declare() -> None:
    """Thresholds gets a field for each filter: what a recipe allows is what is registered now."""
    fields = {name: FieldInfo(annotation=kind.config, default=kind.config()) for name, kind in FILTERS.items()}
    Thresholds.__pydantic_fields__ = fields
    Thresholds.__annotations__ = {name: kind.config for name, kind in FILTERS.items()}
    Thresholds.model_rebuild(force=True)


register(GopherQuality)
register(GopherRepetition)
register(FineWeb)
register(C4)
register(Code)


def _known(name: Any) -> str:
    names = [*SETS, *FILTERS]
    if name not in names:
        *most, last = map(repr, names)
        raise PydanticKnownError("literal_error", {"expected": f"{', '.join(most)} or {last}"})
    return name


def _thresholds(value: Any) -> Thresholds:
    return value if isinstance(value, Thresholds) else Thresholds.model_validate(value)


# Both look at the registry as it is when a recipe is read; a Literal or a nested schema would keep that of the import.
RuleName = Annotated[str, PlainValidator(_known)]
AnyThresholds = Annotated[
    Thresholds, GetPydanticSchema(lambda *_: core_schema.no_info_plain_validator_function(_thresholds))
]


def filters(names: Iterable[str], thresholds: Thresholds) -> list[Filter[Any]]:
    """The named filters with their thresholds, each once, sets taken apart."""
    parts = dict.fromkeys(part for name in names for part in SETS.get(name, (name,)))
    return [FILTERS[name](getattr(thresholds, name)) for name in parts]


def judge(texts: list[str], by: Iterable[Filter[Any]]) -> list[Verdict]:
    """A verdict for each text: the first filter's that removes it, else the text as the filters leave it."""
    verdicts = [Verdict(text) for text in texts]
    groups = batches(texts)
    for one in by:
        for group in groups:
            rows = [i for i in range(*group.indices(len(texts))) if verdicts[i].reason is None]
            if rows:
                for row, verdict in zip(rows, one.judge([verdicts[i].text for i in rows]), strict=True):
                    verdicts[row] = verdict
    return verdicts
