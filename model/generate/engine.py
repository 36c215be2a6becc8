"""Batched generation with a state (KV cache): ragged prompts, finished rows dropped, a seed for each row.

    prefill all prompts, right-padded, in one forward pass
    repeat:  last logits -> distribution -> draw -> rows that stop leave the batch -> one forward pass of a token a row

A row's result depends on its prompt, its seed and the model only, not on its batch (up to fp32 rounding).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from model.decoder import Decoder
from model.generate.batches import check_prompts, in_batches
from model.generate.decoding import GREEDY, Decoding
from model.generate.sampling import check_drawn, distribution, draw
from model.seeds import int64
from model.segments import Segments
from model.state import State

Finish = Literal["stop", "length"]


@dataclass
class Completion:
    """tokens: without the prompt; a stop token that ended it is the last one (finish "stop").

    logprobs: log-probability of each token under the model itself (temperature 1, nothing truncated): the
    policy's. sampled_logprobs: under the distribution it was drawn from (0.0 for greedy).
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled_logprobs: list[float] = field(default_factory=list)
    finish: Finish = "length"


@dataclass(frozen=True)
class Token:
    id: int
    logprob: float
    sampled_logprob: float


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding = GREEDY,
    seeds: Sequence[int] | None = None,
    batch_size: int = 128,
) -> list[Completion]:
    """A completion for each prompt. seeds: one for each row; without, row i has the seed `decoding.seed` + i.

    At most `batch_size` rows are in memory at once. ValueError for an empty prompt, or for one that leaves no
    room below the model's `max_seq_len`; a row that reaches it ends with finish "length".
    """
    _check(model, prompts)
    completions = [Completion() for _ in prompts]
    for rows, chosen, batch_seeds in in_batches(prompts, decoding.seed if seeds is None else seeds, batch_size):
        steps = _decode(model, chosen, decoding, batch_seeds)
        for active, tokens, logprobs, sampled in steps:
            for i, token, logprob, sampled_logprob in zip(active, tokens, logprobs, sampled, strict=True):
                completion = completions[rows[i]]
                completion.tokens.append(token)
                completion.logprobs.append(logprob)
                completion.sampled_logprobs.append(sampled_logprob)
    for completion in completions:
        if completion.tokens and completion.tokens[-1] in decoding.stop_ids:
            completion.finish = "stop"
    return completions


def stream(model: Decoder, prompt: Sequence[int], decoding: Decoding = GREEDY) -> Iterator[Token]:
    """The tokens of one completion as they are drawn; a stop token that ends it comes last."""
    _check(model, [prompt])
    for _, tokens, logprobs, sampled in _decode(model, [prompt], decoding, [decoding.seed]):
        yield Token(tokens[0], logprobs[0], sampled[0])


_Step = tuple[list[int], list[int], list[float], list[float]]


@torch.no_grad()  # not inference_mode: what it caches (RoPE tables) is used in training too
def _decode(
    model: Decoder, prompts: Sequence[Sequence[int]], decoding: Decoding, seeds: Sequence[int]
) -> Iterator[_Step]:
    """For each step: rows still active, their new tokens and both log-probabilities."""
    limit = model.config.max_seq_len
    if not prompts:
        return
    device = model.embedding.weight.device
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    longest = int(lengths.max())
    tokens_BT = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, : len(prompt)] = torch.tensor(prompt, device=device)
    capacity = min(longest + decoding.max_new_tokens, limit)
    hidden, state = model(
        tokens_BT, segments=Segments.padded(lengths, longest), state=model.new_state(len(prompts), capacity)
    )
    assert state is not None
    last = hidden[torch.arange(len(prompts), device=device), lengths - 1]
    seen = _seen(tokens_BT, lengths, model.config.vocab_size) if decoding.repetition_penalty != 1 else None
    stops = torch.tensor(decoding.stop_ids, dtype=torch.long, device=device)
    rows = torch.arange(len(prompts), device=device)
    seeds_B = torch.tensor([int64(seed) for seed in seeds], device=device)
    for step in range(decoding.max_new_tokens):
        logits = model.logits(last)
        dist_BV = distribution(logits, decoding, seen)
        token = dist_BV.argmax(-1) if decoding.temperature == 0 else draw(dist_BV, seeds_B, step)
        logprob = logits.log_softmax(-1).gather(1, token[:, None]).squeeze(1)
        sampled = dist_BV.gather(1, token[:, None]).squeeze(1)
        check_drawn(logprob, sampled, decoding)
        yield rows.tolist(), token.tolist(), logprob.tolist(), sampled.tolist()
        if step + 1 == decoding.max_new_tokens:
            return
        if seen is not None:
            seen.scatter_(1, token[:, None], True)
        goes_on = ~torch.isin(token, stops) & (state.lengths_B < limit)
        if not bool(goes_on.all()):
            keep = goes_on.nonzero().squeeze(1)
            if not keep.numel():
                return
            state, rows, seeds_B, token = state.select(keep), rows[keep], seeds_B[keep], token[keep]
            seen = None if seen is None else seen[keep]
        hidden, state = model(token[:, None], state=state)
        assert isinstance(state, State)
        last = hidden[:, -1]


def _check(model: Decoder, prompts: Sequence[Sequence[int]]) -> None:
    """ValueError if a prompt can't be continued."""
    if not model.config.causal:
        raise ValueError("a model that isn't causal has no next token: use model.generate.diffusion")
    check_prompts(prompts, model.config.max_seq_len, 0, model.config.vocab_size)


def _seen(tokens_BT: Tensor, lengths_B: Tensor, vocab_size: int) -> Tensor:
    """(B, V) bool: which tokens each prompt holds."""
    real = torch.arange(tokens_BT.shape[1], device=tokens_BT.device) < lengths_B[:, None]
    counts = torch.zeros(tokens_BT.shape[0], vocab_size, dtype=torch.long, device=tokens_BT.device)
    return counts.scatter_add_(1, tokens_BT, real.long()) > 0
