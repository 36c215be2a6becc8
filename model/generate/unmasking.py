"""How a masked-diffusion model fills in a text: which hidden tokens are revealed by which forward pass. No torch, so
that a recipe can be read without it."""

from dataclasses import dataclass
from typing import Literal, get_args

from model.checks import at_least, choose

Order = Literal["confidence", "random"]


@dataclass(frozen=True)
class Unmasking:
    """Defaults: one token a pass, the surest first, anywhere in the text."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (pydantic's protocol; not a field)

    steps: int = 0  # forward passes for a whole text, if it does not end before; 0: one a token
    block_length: int = 0  # tokens that are filled in before later ones are (semi-autoregressive); 0: all at once
    order: Order = "confidence"  # the likeliest draws first (LLaDA); random: as hidden in training (ancestral sampling)

    def __post_init__(self) -> None:
        choose("order", self.order, get_args(Order))
        for name in ("steps", "block_length"):
            at_least(name, getattr(self, name), 0)

    def passes(self, tokens: int) -> list[tuple[int, int]]:
        """For each pass over a text of so many tokens: (end of the block it works on, tokens revealed after it).

        Each block has its share of the steps, at least one and at most one a token, and each of them as many tokens.
        """
        found: list[tuple[int, int]] = []
        for begin in range(0, tokens, self.block_length or max(1, tokens)):
            size = min(self.block_length or tokens, tokens - begin)
            steps = min(size, max(1, round(self.steps * size / tokens))) if self.steps else size
            found += [(begin + size, begin + size * (step + 1) // steps) for step in range(steps)]
        return found


ONE_BY_ONE = Unmasking()
