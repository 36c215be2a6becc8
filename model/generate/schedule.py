"""How the temperature goes over an answer's tokens.

    constant                   temperature
    linear:to=0.2,over=64      in a straight line to 0.2 at the 64th token, and 0.2 from there on
    cosine:to=0.2              in half a wave, to the last token that max_new_tokens allows

No torch.
"""

import math
from dataclasses import dataclass
from functools import cache

from model.checks import choose
from model.errors import UserError
from model.generate.option import check_options, option
from model.generate.words import made, parsed

CONSTANT = "constant"
SHAPES = (CONSTANT, "linear", "cosine")


@dataclass(frozen=True)
class Way:
    to: float = option(0.0, "The temperature at the end.", ge=0.0)
    over: int = option(0, "Tokens until it is there; 0: max_new_tokens.", ge=0)

    def __post_init__(self) -> None:
        check_options(self)


def check_schedule(word: str) -> None:
    """UserError for a word that is no schedule."""
    shape, _ = _read(word)
    if shape == CONSTANT and ":" in word:
        raise UserError(f"temperature_schedule = {word!r}: a constant one has no options")


def scheduled(word: str, temperature: float, token: int, max_new_tokens: int) -> float:
    """The temperature for token number `token` of an answer, from 0."""
    shape, way = _read(word)
    if shape == CONSTANT:
        return temperature
    last = (way.over or max_new_tokens) - 1
    share = min(1.0, token / last) if last > 0 else 1.0
    if shape == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return temperature + (way.to - temperature) * share


@cache
def _read(word: str) -> tuple[str, Way]:
    shape, given = parsed("temperature_schedule", word)
    choose("temperature_schedule", shape, SHAPES)
    return shape, made("temperature_schedule", shape, Way, given)
