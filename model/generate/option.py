"""A field of a way to decode: default, range and description stand in one place, and every surface is made from them.

The command line, the registered model's signature and a recipe's tables read these fields. No torch.
"""

import math
import operator
from dataclasses import Field, field, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin

from model.checks import choose
from model.errors import UserError

BOUNDS = {"ge": ("at least", operator.ge), "gt": ("above", operator.gt), "le": ("at most", operator.le)}

NUMBERS: dict[Any, tuple[type, str]] = {int: (Integral, "a whole number"), float: (Real, "a number, and finite")}


def option(default: Any, description: str, **bounds: float) -> Any:
    """A dataclass field. description: a sentence for a person; bounds, `ge`, `gt` and `le`: see `check_options`."""
    if not bounds.keys() <= BOUNDS.keys():
        raise TypeError(f"a bound is one of {', '.join(BOUNDS)}, not {', '.join(bounds)}")
    return field(default=default, metadata={"description": description, **bounds})


def allowed(option: Field) -> str:
    """What an option may be, in words; "" for anything of its type."""
    if get_origin(option.type) is Literal:
        return " or ".join(get_args(option.type))
    bounds = {kind: option.metadata[kind] for kind in BOUNDS if kind in option.metadata}
    return " and ".join(f"{BOUNDS[kind][0]} {bound:g}" for kind, bound in bounds.items())


def check_options(options: Any) -> None:
    """UserError for the first field that is no number where it must be one, out of its range or none of its choices."""
    for f in fields(options):
        value = getattr(options, f.name)
        if get_origin(f.type) is Literal:
            choose(f.name, value, get_args(f.type))
        if f.type in NUMBERS:
            kind, words = NUMBERS[f.type]
            if not isinstance(value, kind) or isinstance(value, bool) or (f.type is float and not _finite(value)):
                raise UserError(f"{f.name} = {value!r} must be {words}. {f.metadata['description']}")
        if not all(BOUNDS[kind][1](value, f.metadata[kind]) for kind in BOUNDS if kind in f.metadata):
            raise UserError(f"{f.name} = {value} must be {allowed(f)}. {f.metadata['description']}")


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False
