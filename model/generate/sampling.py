"""From logits to a law over the next token, and one draw from it.

    logits -> repetition penalty (Keskar et al. 2019, CTRL) -> / temperature -> top-k (Fan et al. 2018)
           -> top-p (Holtzman et al. 2020, nucleus) -> min-p (Nguyen et al. 2024, arXiv 2407.01082) -> softmax

Draws are counter-based: token number t of a row with seed s uses a hash of (s, t) as its uniform number, so a
row's text depends on nothing else in its batch, on no device and on no global state.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UserError(f"temperature = {self.temperature} must be 0 (greedy) or greater")
        if self.top_k < 0:
            raise UserError(f"top_k = {self.top_k} must be 0 (off) or greater")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p} must be above 0 and at most 1 (off)")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p = {self.min_p} must be between 0 (off) and 1")
        if self.repetition_penalty <= 0:
            raise UserError(f"repetition_penalty = {self.repetition_penalty} must be above 0 (1 is off)")


GREEDY = Sampling(temperature=0.0)


def law(logits_BV: Tensor, sampling: Sampling, seen_BV: Tensor | None = None) -> Tensor:
    """Log-probabilities (B, V), float32, of the law that `sampling` draws from; -inf where truncated.

    seen_BV: bool, tokens that the repetition penalty holds down. Greedy is the law of the largest logit
    alone.
    """
    logits = logits_BV.float()
    if sampling.repetition_penalty != 1 and seen_BV is not None:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen_BV, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, float("-inf")).scatter_(-1, best, 0.0)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p < 1:
        probability, order = torch.sort(logits.softmax(-1), dim=-1, descending=True, stable=True)
        before = probability.cumsum(-1) - probability  # kept while what is before it does not reach top_p
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter_(-1, order, before >= sampling.top_p)
        logits = logits.masked_fill(dropped, float("-inf"))
    if sampling.min_p > 0:
        probability = logits.softmax(-1)
        least = sampling.min_p * probability.amax(-1, keepdim=True)
        logits = logits.masked_fill(probability < least, float("-inf"))
    return logits.log_softmax(-1)


def draw(law_BV: Tensor, seeds_B: Tensor, step: int | Tensor) -> Tensor:
    """One token (B,) from each row's law, by inverting its cumulative distribution at uniform(seed, step)."""
    cumulative = law_BV.double().exp().cumsum(-1)
    u = uniform(seeds_B, step)[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, u, right=True).squeeze(-1)
    # A draw in the last rounding error would land past the last possible token.
    possible = torch.arange(law_BV.shape[-1], device=law_BV.device) * (law_BV > float("-inf"))
    return torch.minimum(token, possible.amax(-1))


def uniform(seeds_B: Tensor, *steps: int | Tensor) -> Tensor:
    """Float64 numbers in [0, 1) of (seed, step, …): a round of splitmix64 (Steele et al. 2014) for each."""
    x = _mix(seeds_B.long())
    for step in steps:
        x = _mix(x + step)
    return ((x >> 11) & ((1 << 53) - 1)).double() / (1 << 53)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's step on int64, which wraps around as uint64 does; shifts are made logical by a mask."""
    x = x + -7046029254386353131
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -4658895280553007687
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -7723592293110705685
    return x ^ ((x >> 31) & ((1 << 33) - 1))
