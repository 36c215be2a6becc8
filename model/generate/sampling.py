"""From logits to a distribution over the next token, and one draw from it.

    logits -> logit bias -> repetition penalty (Keskar et al. 2019, CTRL) -> presence and frequency penalties
           -> what a watcher lets come -> no stop before the minimum length -> / temperature
           -> top-k (Fan et al. 2018) -> top-p (Holtzman et al. 2020, nucleus) -> min-p (Nguyen et al. 2024, arXiv
              2407.01082) -> locally typical (Meister et al. 2022, arXiv 2202.00666) -> softmax

Draws are counter-based: token number t of a row with seed s uses a hash of (s, t) as its uniform number, so a
row's text depends on nothing else in its batch, on no device and on no global state.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from model.errors import UserError
from model.generate.decoding import Decoding
from model.generate.history import History
from model.generate.schedule import CONSTANT, scheduled

NEVER = float("-inf")
Alternatives = list[tuple[int, float]]  # (token, log-probability), the likeliest first


class Drawn(NamedTuple):
    """The next token of each row. See `Completion` for the two log-probabilities; top: one entry a row, or none."""

    token_B: Tensor
    logprob_B: Tensor
    sampled_B: Tensor
    top: list[Alternatives]


def choose(logits_BV: Tensor, decoding: Decoding, history: History, steps: Tensor | None = None) -> Drawn:
    """The next token of rows that share a decoding. steps (B,): the draws' numbers; default: tokens drawn so far."""
    dist_BV = distribution(logits_BV, decoding, history)
    numbers = history.drawn_B if steps is None else steps
    token_B = dist_BV.argmax(-1) if decoding.greedy else draw(dist_BV, history.seeds_B, numbers)
    own_BV = logits_BV.log_softmax(-1)
    logprob_B, sampled_B = (x.gather(1, token_B[:, None]).squeeze(1) for x in (own_BV, dist_BV))
    check_drawn(logprob_B, sampled_B, decoding)
    return Drawn(token_B, logprob_B, sampled_B, likeliest(own_BV, decoding.top_logprobs))


def likeliest(logprob_BV: Tensor, k: int) -> list[Alternatives]:
    """The k likeliest tokens of each row; no rows for 0."""
    if not k:
        return []
    values, ids = logprob_BV.topk(min(k, logprob_BV.shape[1]), -1)
    return [list(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]


def distribution(logits_BV: Tensor, decoding: Decoding, history: History | None = None) -> Tensor:
    """Log-probabilities (B, V), float32, of what `decoding` draws from; -inf where truncated.

    history: for the options that depend on it; without, those don't count. Greedy is the distribution of the largest
    logit alone.
    """
    logits = shaped(logits_BV, decoding, history)
    if decoding.greedy:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, NEVER).scatter_(-1, best, 0.0)
    logits = _cooled(logits, decoding, history)
    if 0 < decoding.top_k < logits.shape[-1]:
        least = logits.topk(decoding.top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, NEVER)
    if decoding.top_p < 1:
        probability = logits.softmax(-1)
        logits = _up_to_mass(logits, probability, -probability, decoding.top_p)
    if decoding.min_p > 0:
        probability = logits.softmax(-1)
        least = decoding.min_p * probability.amax(-1, keepdim=True)
        logits = logits.masked_fill(probability < least, NEVER)
    if decoding.typical_p < 1:
        logprob = logits.log_softmax(-1)
        entropy = torch.special.entr(logprob.exp()).sum(-1, keepdim=True)
        logits = _up_to_mass(logits, logprob.exp(), (-logprob - entropy).abs(), decoding.typical_p)
    return logits.log_softmax(-1)


def shaped(logits_BV: Tensor, decoding: Decoding, history: History | None = None) -> Tensor:
    """Logits after what holds down, lifts or forbids single tokens: what a search reads, which draws nothing."""
    logits = logits_BV.float()
    if decoding.logit_bias:
        ids, biases = zip(*decoding.biases.items(), strict=True)
        if max(ids) >= logits.shape[-1]:
            raise UserError(f"logit_bias: there is no token {max(ids)}; the model has {logits.shape[-1]}")
        logits = logits.index_add(-1, logits.new_tensor(ids).long(), logits.new_tensor(biases).expand(len(logits), -1))
    if history is None:
        return logits
    if history.prompt_BV is not None and history.output_BV is not None:
        logits = _penalised(logits, decoding, history.prompt_BV, history.output_BV)
    allowed_BV = history.allowed()
    if allowed_BV is not None:
        logits = logits.masked_fill(~allowed_BV, NEVER)
    if decoding.min_new_tokens and decoding.stop_ids:
        early_B = history.drawn_B < decoding.min_new_tokens
        longer = logits.index_fill(-1, torch.tensor(decoding.stop_ids, device=logits.device), NEVER)
        goes_on_B = (longer > NEVER).any(-1)
        logits = torch.where((early_B & goes_on_B)[:, None], longer, logits)
    return logits


def _penalised(logits: Tensor, decoding: Decoding, prompt_BV: Tensor, output_BV: Tensor) -> Tensor:
    """The repetition penalty counts the prompt too; presence and frequency the output alone, as elsewhere."""
    penalty = decoding.repetition_penalty
    if penalty != 1:
        seen_BV = (prompt_BV > 0) | (output_BV > 0)
        logits = torch.where(seen_BV, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if decoding.presence_penalty:
        logits = logits - decoding.presence_penalty * (output_BV > 0)
    if decoding.frequency_penalty:
        logits = logits - decoding.frequency_penalty * output_BV
    return logits


def _cooled(logits: Tensor, decoding: Decoding, history: History | None) -> Tensor:
    """Divided by the temperature; the largest is 0 first, so that no temperature above 0 makes it infinite."""
    limits = torch.finfo(torch.float32)
    if decoding.temperature_schedule == CONSTANT:
        if decoding.temperature == 1:
            return logits
        return (logits - logits.amax(-1, keepdim=True)) / min(max(decoding.temperature, limits.tiny), limits.max)
    drawn = [0] * len(logits) if history is None else history.drawn_B.tolist()
    schedule, first, most = decoding.temperature_schedule, decoding.temperature, decoding.max_new_tokens
    temperatures = [min(max(scheduled(schedule, first, n, most), limits.tiny), limits.max) for n in drawn]
    return (logits - logits.amax(-1, keepdim=True)) / logits.new_tensor(temperatures)[:, None]


def _up_to_mass(logits: Tensor, probability: Tensor, rank: Tensor, mass: float) -> Tensor:
    """Only the tokens of the lowest ranks, until what is before one reaches the mass; the first is always kept."""
    order = rank.argsort(dim=-1, stable=True)
    in_order = probability.gather(-1, order)
    over = in_order.cumsum(-1) - in_order >= mass
    over[..., 0] = False
    return logits.masked_fill(torch.zeros_like(over).scatter_(-1, order, over), NEVER)


def draw(dist_BV: Tensor, seeds_B: Tensor, step: int | Tensor) -> Tensor:
    """One token (B,) from each row's distribution, by inverting its cumulative sums at uniform(seed, step)."""
    cumulative = dist_BV.double().exp().cumsum(-1)
    u = uniform(seeds_B, step)[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, u, right=True).squeeze(-1)
    # A draw in the last rounding error would land past the last possible token.
    possible = torch.arange(dist_BV.shape[-1], device=dist_BV.device) * (dist_BV > NEVER)
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
        f"No distribution comes of {decoding.said} here: the numbers overflow, or every token is forbidden. "
        "Give less extreme ones."
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
