"""Batched generation with a state (KV cache): ragged prompts, finished rows dropped, a seed for each row.

    prefill all prompts, right-padded, in one forward pass
    repeat:  last logits -> distribution -> draw -> rows that stop leave the batch -> one forward pass of a token a row

A row's result depends on its prompt, its seed and the model only, not on its batch (up to fp32 rounding).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import starmap
from typing import Literal

import torch
from torch import Tensor

from model.decoder import Decoder
from model.generate.batches import check_prompts, in_batches
from model.generate.decoding import GREEDY, Decoding
from model.generate.history import History, Watch
from model.generate.sampling import Alternatives, Drawn, choose
from model.segments import Segments
from model.state import State

Finish = Literal["stop", "length"]


@dataclass
class Completion:
    """tokens: without the prompt; a stop token that ended it is the last one (finish "stop").

    logprobs: log-probability of each token under the model itself (temperature 1, nothing truncated): the
    policy's. sampled_logprobs: under the distribution it was drawn from (0.0 for greedy). top: the likeliest tokens
    beside each, where the decoding asks for them. others: what else was written for the prompt, the best first.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled_logprobs: list[float] = field(default_factory=list)
    finish: Finish = "length"
    top: list[Alternatives] = field(default_factory=list)
    others: list["Completion"] = field(default_factory=list)

    def add(self, token: "Token") -> None:
        self.tokens.append(token.id)
        self.logprobs.append(token.logprob)
        self.sampled_logprobs.append(token.sampled_logprob)
        if token.top:
            self.top.append(token.top)

    def __iter__(self) -> Iterator["Token"]:
        """Its tokens, as they would have been streamed."""
        tops = self.top or [[] for _ in self.tokens]
        return starmap(Token, zip(self.tokens, self.logprobs, self.sampled_logprobs, tops, strict=True))

    @property
    def mean_logprob(self) -> float:
        """Of its tokens under the model; 0 for none."""
        return sum(self.logprobs) / max(1, len(self.logprobs))


@dataclass(frozen=True)
class Token:
    id: int
    logprob: float
    sampled_logprob: float
    top: Alternatives = field(default_factory=list)


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding = GREEDY,
    seeds: Sequence[int] | None = None,
    batch_size: int = 128,
    watch: Watch | None = None,
) -> list[Completion]:
    """A completion for each prompt. seeds: one for each row; without, row i has the seed `decoding.seed` + i.

    watch: makes each row's watcher; a row that it ends has finish "stop". At most `batch_size` rows are in memory at once. ValueError for an empty prompt, or for one that leaves no
    room below the model's `max_seq_len`; a row that reaches it ends with finish "length".
    """
    _check(model, prompts)
    completions = [Completion() for _ in prompts]
    for rows, chosen, batch_seeds in in_batches(prompts, decoding.seed if seeds is None else seeds, batch_size):
        for active, tokens, stopped in _decode(model, chosen, decoding, batch_seeds, watch):
            for i, token, stop in zip(active, tokens, stopped, strict=True):
                completions[rows[i]].add(token)
                if stop:
                    completions[rows[i]].finish = "stop"
    return completions


def stream(
    model: Decoder, prompt: Sequence[int], decoding: Decoding = GREEDY, watch: Watch | None = None
) -> Iterator[Token]:
    """The tokens of one completion as they are drawn; a stop token that ends it comes last."""
    _check(model, [prompt])
    for _, tokens, _ in _decode(model, [prompt], decoding, [decoding.seed], watch):
        yield tokens[0]


_Step = tuple[list[int], list[Token], list[bool]]


@torch.no_grad()  # not inference_mode: what it caches (RoPE tables) is used in training too
def _decode(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    seeds: Sequence[int],
    watch: Watch | None,
) -> Iterator[_Step]:
    """For each step: rows still active, their new tokens, and which of them stop with it."""
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
    history = History.begin(prompts, seeds, decoding, model.config.vocab_size, device, watch)
    stops = torch.tensor(decoding.stop_ids, dtype=torch.long, device=device)
    rows = torch.arange(len(prompts), device=device)
    for step in range(decoding.max_new_tokens):
        drawn = choose(model.logits(last), decoding, history)
        token = drawn.token_B
        stopped = torch.isin(token, stops) | history.take(token)
        yield rows.tolist(), _tokens(drawn), stopped.tolist()
        if step + 1 == decoding.max_new_tokens:
            return
        goes_on = ~stopped & (state.lengths_B < limit)
        if not bool(goes_on.all()):
            keep = goes_on.nonzero().squeeze(1)
            if not keep.numel():
                return
            state, history, rows, token = state.select(keep), history.select(keep), rows[keep], token[keep]
        hidden, state = model(token[:, None], state=state)
        assert isinstance(state, State)
        last = hidden[:, -1]


def _check(model: Decoder, prompts: Sequence[Sequence[int]]) -> None:
    """ValueError if a prompt can't be continued."""
    if not model.config.causal:
        raise ValueError("a model that isn't causal has no next token: use model.generate.diffusion")
    check_prompts(prompts, model.config.max_seq_len, 0, model.config.vocab_size)


def _tokens(drawn: Drawn) -> list[Token]:
    top = drawn.top or [[] for _ in drawn.token_B]
    return list(map(Token, drawn.token_B.tolist(), drawn.logprob_B.tolist(), drawn.sampled_B.tolist(), top))
