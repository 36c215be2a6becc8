"""Conversations packed into rows for fine-tuning: none cut where it fits, few places left empty.

    conversations ── render (tokenizer/chat.py) ──▶ (tokens, targets) ── best fit ──▶ rows of T, in a shuffled order

Only what an assistant says is a target; a row's conversations are documents of their own, so none sees another.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cluster.data.order import Permutation, rank_slice
from cluster.data.rows import IGNORE, RowBatch, join, stack
from cluster.data.tokenizer.chat import render
from cluster.errors import UserError

if TYPE_CHECKING:
    from cluster.data.tokenizer.tokenizer import Tokenizer


class ChatRows:
    """Conversations, best-fit packed into rows; batches like those of rows.TokenRows.

    Args:
        examples: {"messages": […]}, each with an assistant's message.
        seq_len: T. A longer conversation is cut at T; one whose assistant's part lies beyond is dropped.
        seed: of the order of the rows.
        ahead: how far a target is ahead of its token: 1, or 0 for the token itself (masked diffusion).
        tail: up to so many eos follow a conversation, each number as often, as targets: a model that fills in a text
            of a given length learns there that an answer may end before (LLaDA, arXiv 2502.09992, section 2.3).

    Attributes:
        examples, truncated, dropped: how many there are, were cut, were left out.
    """

    def __init__(
        self,
        examples: Iterable[Mapping],
        tokenizer: Tokenizer,
        seq_len: int,
        seed: int = 0,
        ahead: int = 1,
        tail: int = 0,
    ):
        self.seq_len, self.seed, self.pad_id = seq_len, seed, tokenizer.pad_id
        self.examples = self.truncated = self.dropped = 0
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for number, example in enumerate(examples):
            self.examples += 1
            try:
                ids, mask = render(tokenizer, example.get("messages", ()))
            except UserError as error:
                raise UserError(f"Chat example {number}: {error}") from None
            room = min(tail, max(0, seq_len - len(ids)))
            extra = random.Random(f"{seed} {number}").randint(0, room)
            tokens, targets = next_tokens([*ids, *[tokenizer.eos_id] * extra], [*mask, *[1] * extra], ahead)
            self.truncated += len(tokens) > seq_len
            tokens, targets = tokens[:seq_len], targets[:seq_len]
            if (targets != IGNORE).any():
                parts.append((tokens, targets))
            else:
                self.dropped += 1
        if not parts:
            raise UserError(
                f"None of {self.examples} chat examples has an assistant's token within seq_len = {seq_len}."
            )
        self._parts = parts
        self._bins = best_fit([len(tokens) for tokens, _ in parts], seq_len)

    def __len__(self) -> int:
        """Rows in an epoch."""
        return len(self._bins)

    def row(self, number: int) -> RowBatch:
        return join([self._parts[i] for i in self._bins[number]], self.seq_len, self.pad_id)

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> RowBatch:
        """A rank's part of global batch `step`, see rows.TokenRows.batch; epochs follow one another."""
        samples = np.arange(step * batch_size, (step + 1) * batch_size)[rank_slice(batch_size, rank, world_size)]
        rows = []
        for epoch, place in zip(*np.divmod(samples, len(self)), strict=True):
            rows.append(self.row(int(Permutation(len(self), (self.seed, "chat", int(epoch)))(place))))
        return stack(rows, self.seq_len)


def next_tokens(ids: Sequence[int], mask: Sequence[int], ahead: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, targets), both shorter than ids by `ahead`.

    A target is the id so far ahead where its mask is 1, else -100.
    """
    array = np.asarray(ids, dtype=np.int64)
    return array[: len(array) - ahead], np.where(np.asarray(mask[ahead:], dtype=bool), array[ahead:], IGNORE)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing (Ding et al. 2024, 2404.10830): items into bins of `capacity`, none cut, few bins.

    Returns the items' indices in each bin; the same for the same lengths. Raises ValueError for a too long
    item.
    """
    if max(lengths, default=0) > capacity:
        raise ValueError(f"An item of {max(lengths)} doesn't fit into a row of {capacity}.")
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free, bin), ascending
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(room, (lengths[item], -1))
        if at == len(room):
            bins.append([])
            room.append((capacity, len(bins) - 1))
            at = len(room) - 1
        free, number = room.pop(at)
        bins[number].append(item)
        insort(room, (free - lengths[item], number))
    return bins
