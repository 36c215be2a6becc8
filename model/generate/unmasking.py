"""How a masked-diffusion model fills in a text: which hidden tokens are revealed by which forward pass.

No torch, so that a recipe can be read without it.
"""

from dataclasses import dataclass
from typing import Literal

from model.generate.option import check_options, option

Order = Literal["confidence", "random"]


@dataclass(frozen=True)
class Unmasking:
    """Defaults: one token a pass, the surest first, anywhere in the text."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (pydantic's protocol; not a field)

    steps: int = option(0, "Of a diffusion model: forward passes for the whole text; 0: one for each token.", ge=0)
    block_length: int = option(
        0,
        "Of a diffusion model: tokens that are filled in before later ones; 0: all at once.",
        ge=0,
    )
    order: Order = option(  # noqa: RUF009 (it is a field)
        "confidence",
        "Of a diffusion model: the likeliest draws first, as in LLaDA, or random, as tokens are hidden in training.",
    )

    def __post_init__(self) -> None:
        check_options(self)

    def passes(self, tokens: int) -> list[tuple[int, int]]:
        """For each pass over a text of so many tokens: (end of the block it works on, tokens revealed after it).

        Each block has its share of the steps, at least one and at most one a token, and each of them as many tokens.
        """
        found: list[tuple[int, int]] = []
        for begin in range(0, tokens, self.block_length or max(1, tokens)):
            size = min(self.block_length or tokens, tokens - begin)
            steps = min(size, max(1, round(min(self.steps, tokens) * size / tokens))) if self.steps else size
            found += [(begin + size, begin + size * (step + 1) // steps) for step in range(steps)]
        return found
