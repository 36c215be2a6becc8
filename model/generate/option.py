"""A field of a way to decode: default, range and description stand in one place, and every surface is made from them.

The command line, the registered model's signature and a recipe's tables read these fields. No torch.
"""

import operator
from dataclasses import field, fields
from typing import Any, Literal, get_args, get_origin

from model.checks import choose
from model.errors import UserError

BOUNDS = {"ge": ("at least", operator.ge), "gt": ("above", operator.gt), "le": ("at most", operator.le)}


def option(default: Any, description: str, **bounds: float) -> Any:
    """A dataclass field. description: a sentence for a person; bounds, `ge`, `gt` and `le`: see `check_options`."""
    if not bounds.keys() <= BOUNDS.keys():
        raise TypeError(f"a bound is one of {', '.join(BOUNDS)}, not {', '.join(bounds)}")
    return field(default=default, metadata={"description": description, **bounds})


def check_options(options: Any) -> None:
    """UserError for the first field that is out of its range or none of its choices."""
    for f in fields(options):
        value, bounds = getattr(options, f.name), {kind: f.metadata[kind] for kind in BOUNDS if kind in f.metadata}
        if get_origin(f.type) is Literal:
            choose(f.name, value, get_args(f.type))
        if not all(BOUNDS[kind][1](value, bound) for kind, bound in bounds.items()):
            allowed = " and ".join(f"{BOUNDS[kind][0]} {bound:g}" for kind, bound in bounds.items())
            raise UserError(f"{f.name} = {value} must be {allowed}. {f.metadata['description']}")
