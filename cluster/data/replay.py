"""Replay: rows of conversations and rows of the pretraining's own text in one order, so that a model doesn't forget.

    sample s of the run ─ Mixture {chat: 1 - replay, text: replay} ─▶ the chat's n-th row, or the text's

The shares are exact over the run, to the nearest row: the mixture's block is the whole run. A text row is any row of
any source, so sources come by their size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cluster.data.order import LONGEST_BLOCK, Mixture, rank_slice
from cluster.data.rows import RowBatch, stack

if TYPE_CHECKING:
    from cluster.data.chat_rows import ChatRows
    from cluster.data.rows import TokenRows

CHAT, TEXT = "chat", "text"


class ReplayedRows:
    """Batches of a fine-tuning in which `replay` of all rows are text.

    Args:
        chats: the conversations' rows.
        text: the pretraining's; None: there is none, and nothing is replayed.
        replay: share of the run's rows that are text, 0 to below 1.
        samples: rows of the whole run, steps times the global batch.
        seed: of the order.

    Raises:
        UserError: so few rows that one of the two would have none.
    """

    def __init__(self, chats: ChatRows, text: TokenRows | None, replay: float, samples: int, seed: int = 0):
        self.chats, self.text, self.seq_len, self.samples = chats, text, chats.seq_len, samples
        rows, shares = {CHAT: len(chats)}, {CHAT: 1 - replay}
        self._first = np.cumsum([0, *(text.rows[source] for source in text.sources)] if text else [0])
        if replay:
            rows[TEXT], shares[TEXT] = int(self._first[-1]), replay
        self.order = Mixture(rows, shares, seed, run_block(samples))

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> RowBatch:
        """A rank's part of global batch `step`, see rows.TokenRows.batch."""
        samples = np.arange(step * batch_size, (step + 1) * batch_size)[rank_slice(batch_size, rank, world_size)]
        place = self.order(samples)
        rows = [self._row(self.order.sources[s], int(r)) for s, r in zip(place.source, place.row, strict=True)]
        return stack(rows, self.seq_len)

    def count(self, kind: str) -> int:
        """Rows of a kind, CHAT or TEXT, that the whole run reads."""
        if kind not in self.order.sources:
            return 0
        number = self.order.sources.index(kind)
        whole, rest = divmod(self.samples, self.order.block)
        last = self.order(np.arange(whole * self.order.block, self.samples)).source if rest else np.zeros(0)
        return whole * int(self.order.counts[number]) + int((last == number).sum())

    def _row(self, kind: str, number: int) -> RowBatch:
        if kind == CHAT:
            return self.chats.row(number)
        assert self.text is not None
        source = int(np.searchsorted(self._first, number, side="right")) - 1
        return self.text.row(self.text.sources[source], number - int(self._first[source]))


def run_block(samples: int) -> int:
    """The size of equal blocks that a run of so many samples is made of: one, unless it is longer than that."""
    return -(-samples // -(-samples // LONGEST_BLOCK))
