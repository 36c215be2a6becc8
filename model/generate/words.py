"""A choice and its options in one word, as a person writes them: KIND:key=value,key=value.

    "beam:n=4"   ->   ("beam", {"n": "4"})   ->   Beam(n=4)

No torch.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from model.errors import UserError, did_you_mean

Options = TypeVar("Options")


def parsed(name: str, word: str) -> tuple[str, dict[str, str]]:
    """(kind, its options as texts). name: what the word is the value of, for the UserError of a word of another form."""
    kind, _, rest = str(word).partition(":")
    given: dict[str, str] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise UserError(f"{name} = {word!r}: {part!r} must be KEY=VALUE, as in KIND:key=value,key=value")
        if key in given:
            raise UserError(f"{name} = {word!r} says {key} twice")
        given[key] = value
    return kind, given


def made(name: str, kind: str, options: type[Options], given: Mapping[str, Any]) -> Options:
    """A dataclass of options out of texts or numbers. UserError, with the option's name, for one that it can't have."""
    known = {f.name: f for f in fields(options)}  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"{name} = {kind!r} has no option {key!r}: {has}.{did_you_mean(key, known)}")
    try:
        return options(**{key: _typed(key, value, known[key].type) for key, value in given.items()})
    except UserError as error:
        raise UserError(f"{name} = {kind!r}: {error}") from None


def written(kind: str, given: Mapping[str, Any]) -> str:
    """The word that says this; the inverse of `parsed`."""
    return f"{kind}:{','.join(f'{key}={value}' for key, value in given.items())}" if given else kind


def _typed(key: str, value: Any, kind: Any) -> Any:
    if kind in (int, float) and isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            raise UserError(f"{key} = {value!r} must be {'a whole number' if kind is int else 'a number'}.") from None
    return str(value) if kind is str else value
