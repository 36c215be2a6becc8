"""What a row has behind it when its next token is chosen: everything above the model's own state.

    seed, tokens drawn so far        for the draw's number, a schedule of the temperature, a minimum length
    counts of tokens                 for penalties: only kept where the decoding has one
    a watcher                        what only a text can tell: a stop across tokens' borders, an output's grammar

Rows leave by `select` and come by `join`, as those of a model's state do. B rows, V tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.generate.decoding import Decoding
from model.seeds import int64


class Watcher(Protocol):
    """Looks at one row's tokens as they come."""

    def allowed(self) -> Tensor | None:
        """(V,) bool on the CPU: what may come next; None: anything."""
        ...

    def take(self, token: int) -> bool:
        """Hears of the row's next token; True if it ends the row."""
        ...

    def fork(self) -> "Watcher":
        """One of its own for another row that goes on from here."""
        ...


Watch = Callable[[], Watcher]


@dataclass
class History:
    """seeds_B: int64; drawn_B: tokens of the output; prompt_BV, output_BV: how often each token is in them, int32."""

    seeds_B: Tensor
    drawn_B: Tensor
    prompt_BV: Tensor | None = None
    output_BV: Tensor | None = None
    watchers: list[Watcher] | None = None

    @classmethod
    def begin(
        cls,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        decoding: Decoding,
        vocab_size: int,
        device: torch.device,
        watch: Watch | None = None,
    ) -> "History":
        """Of rows that have only their prompts yet. watch: makes each row's watcher."""
        prompt = output = None
        if decoding.penalises:
            prompt = torch.stack([_counts(torch.tensor(ids), vocab_size) for ids in prompts]).to(device)
            output = torch.zeros_like(prompt)
        seeds_B = torch.tensor([int64(seed) for seed in seeds], device=device)
        watchers = None if watch is None else [watch() for _ in prompts]
        return cls(seeds_B, torch.zeros_like(seeds_B), prompt, output, watchers)

    def take(self, tokens_B: Tensor) -> Tensor:
        """Each row's next token; (B,) bool: whose watcher says that it ends with it."""
        self.drawn_B = self.drawn_B + 1
        if self.output_BV is not None:
            ones = torch.ones_like(tokens_B, dtype=self.output_BV.dtype)[:, None]
            self.output_BV = self.output_BV.scatter_add(1, tokens_B[:, None], ones)
        if self.watchers is None:
            return torch.zeros_like(tokens_B, dtype=torch.bool)
        ended = [watcher.take(token) for watcher, token in zip(self.watchers, tokens_B.tolist(), strict=True)]
        return torch.tensor(ended, device=tokens_B.device)

    def allowed(self) -> Tensor | None:
        """(B, V) bool: what the watchers let come next; None: anything."""
        masks = [watcher.allowed() for watcher in self.watchers or ()]
        if all(mask is None for mask in masks):
            return None
        shape = next(mask.shape for mask in masks if mask is not None)
        whole = [torch.ones(shape, dtype=torch.bool) if mask is None else mask for mask in masks]
        return torch.stack(whole).to(self.seeds_B.device)

    def select(self, rows: Tensor) -> "History":
        """Of only these rows (int64 indices), in that order; a row may be there several times."""
        watchers = None
        if self.watchers is not None:
            watchers, used = [], set[int]()
            for row in rows.tolist():
                watchers.append(self.watchers[row].fork() if row in used else self.watchers[row])
                used.add(row)
        prompt, output = (None if x is None else x[rows] for x in (self.prompt_BV, self.output_BV))
        return History(self.seeds_B[rows], self.drawn_B[rows], prompt, output, watchers)

    def join(self, other: "History") -> "History":
        """These rows, then the other's; both are of one Decoding."""

        def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            return None if a is None or b is None else torch.cat((a, b))

        watchers = None if self.watchers is None else [*self.watchers, *(other.watchers or ())]
        return History(
            torch.cat((self.seeds_B, other.seeds_B)),
            torch.cat((self.drawn_B, other.drawn_B)),
            both(self.prompt_BV, other.prompt_BV),
            both(self.output_BV, other.output_BV),
            watchers,
        )


def _counts(ids: Tensor, vocab_size: int) -> Tensor:
    return torch.bincount(ids, minlength=vocab_size).int()
