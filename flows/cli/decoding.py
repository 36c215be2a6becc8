"""The options of generation on the command line, made from the fields of `Decoding`.

@decoded(CHAT)
def chat(model, decoding: Decoding)   ->   tokenmill chat MODEL --max-tokens 128 --temperature 0.7 ...
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import Field
from typing import Annotated, Any

import typer

from cluster.errors import UserError
from model.generate.decoding import OPTIONS, TYPES, Decoding
from model.generate.option import allowed

FLAGS = {"kind": "--decoding", "max_new_tokens": "--max-tokens", "stops": "--stop"}  # of the others: the field's name


def decoded(defaults: Decoding) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command's parameter `decoding`, as one option for each of its fields."""

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        kept = [p.replace(kind=p.KEYWORD_ONLY) for name, p in own.parameters.items() if name != "decoding"]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            options = {option.name: given.pop(option.name) for option in OPTIONS}
            try:
                decoding = defaults.read(options)
            except UserError as error:
                raise typer.BadParameter(str(error)) from None
            command(**given, decoding=decoding)

        made = [_parameter(option, getattr(defaults, option.name)) for option in OPTIONS]
        run.__signature__ = own.replace(parameters=[*kept, *made])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*kept, *made)}
        return run

    return wrap


def _parameter(option: Field, default: Any) -> inspect.Parameter:
    flag = FLAGS.get(option.name, f"--{option.name.replace('_', '-')}")
    kind = TYPES[option.name]
    words = option.metadata["description"]
    if allowed(option):  # Decoding refuses what isn't; the words are its own
        words += f" ({allowed(option)})"
    shown = typer.Option(flag, help=words)
    several = kind is tuple
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[list[str] if several else kind, shown],
        default=list(default) if several else default,
    )
