"""From logits to a distribution over the next token, and one draw from it.

    logits -> repetition penalty (Keskar et al. 2019, CTRL) -> / temperature -> top-k (Fan et al. 2018)
           -> top-p (Holtzman et al. 2020, nucleus) -> min-p (Nguyen et al. 2024, arXiv 2407.01082) -> softmax

Draws are counter-based: token number t of a row with seed s uses a hash of (s, t) as its uniform number, so a
row's text depends on nothing else in its batch, on no device and on no global state.
"""

import torch
from torch import Tensor

from model.errors import UserError
from model.generate.decoding import Decoding


def distribution(logits_BV: Tensor, decoding: Decoding, seen_BV: Tensor | None = None) -> Tensor:
    """Log-probabilities (B, V), float32, of what `decoding` draws from; -inf where truncated.

    seen_BV: bool, tokens that the repetition penalty holds down. Greedy is the distribution of the largest logit alone.
    """
    logits = logits_BV.float()
    if decoding.repetition_penalty != 1 and seen_BV is not None:
        penalty = decoding.repetition_penalty
        logits = torch.where(seen_BV, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if decoding.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, float("-inf")).scatter_(-1, best, 0.0)
    if decoding.temperature != 1:  # the largest is 0 first, so that no temperature above 0 makes it infinite
        limits = torch.finfo(torch.float32)
        logits = (logits - logits.amax(-1, keepdim=True)) / min(max(decoding.temperature, limits.tiny), limits.max)
    if 0 < decoding.top_k < logits.shape[-1]:
        least = logits.topk(decoding.top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if decoding.top_p < 1:
        probability, order = torch.sort(logits.softmax(-1), dim=-1, descending=True, stable=True)
        before = probability.cumsum(-1) - probability  # kept while what is before it does not reach top_p
        over = before >= decoding.top_p
        over[..., 0] = False  # the likeliest is always kept, however small top_p is
        dropped = torch.zeros_like(over).scatter_(-1, order, over)
        logits = logits.masked_fill(dropped, float("-inf"))
    if decoding.min_p > 0:
        probability = logits.softmax(-1)
        least = decoding.min_p * probability.amax(-1, keepdim=True)
        logits = logits.masked_fill(probability < least, float("-inf"))
    return logits.log_softmax(-1)


def draw(dist_BV: Tensor, seeds_B: Tensor, step: int | Tensor) -> Tensor:
    """One token (B,) from each row's distribution, by inverting its cumulative sums at uniform(seed, step)."""
    cumulative = dist_BV.double().exp().cumsum(-1)
    u = uniform(seeds_B, step)[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, u, right=True).squeeze(-1)
    # A draw in the last rounding error would land past the last possible token.
    possible = torch.arange(dist_BV.shape[-1], device=dist_BV.device) * (dist_BV > float("-inf"))
    return torch.minimum(token, possible.amax(-1))


def check_drawn(logprob: Tensor, sampled: Tensor, decoding: Decoding) -> None:
    """UserError unless what was drawn has probabilities, the model's own and those that it was drawn from."""
    if bool(torch.isfinite(torch.stack((logprob, sampled))).all()):
        return
    if not bool(torch.isfinite(logprob).all()):
        raise UserError(
            "The model gives no probabilities: its logits are NaN or infinite. Its weights are damaged, or its "
            "training diverged."
        )
    raise UserError(
        f"No distribution comes of temperature = {decoding.temperature} and repetition_penalty = "
        f"{decoding.repetition_penalty} here: the numbers overflow. Give less extreme ones."
    )


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
