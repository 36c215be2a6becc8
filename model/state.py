"""What a model remembers while it generates: one state per layer, and how many tokens each row has absorbed.

Attention's cache of keys and values, a window's ring and a scan's hidden state are all *state*: a mixer makes
its own (`new_state`), reads and updates it in `forward`, and `select` keeps only some rows.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class LayerState(Protocol):
    def select(self, rows: Tensor) -> "LayerState": ...


@dataclass
class State:
    """lengths_B: tokens absorbed by each row; longest: an upper bound of them, known without asking the device."""

    layers: list[Any]
    lengths_B: Tensor
    longest: int = 0

    def advance(self, tokens: int, lengths_B: Tensor | None) -> "State":
        """After absorbing `tokens` more of each row, of which `lengths_B` were real."""
        lengths = self.lengths_B + (tokens if lengths_B is None else lengths_B)
        return State(self.layers, lengths, self.longest + tokens)

    def select(self, rows: Tensor) -> "State":
        """The state of only these rows (int64 indices), in that order."""
        lengths = self.lengths_B[rows]
        longest = int(lengths.max()) if lengths.numel() else 0
        return State([layer.select(rows) for layer in self.layers], lengths, longest)


@dataclass
class KVCache:
    """Keys and values (B, K, max_len, D); what lies past a row's length is garbage that no query reads."""

    k_BKSD: Tensor
    v_BKSD: Tensor

    @classmethod
    def empty(
        cls,
        batch: int,
        heads: int,
        max_len: int,
        head_dim: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> "KVCache":
        shape = (batch, heads, max_len, head_dim)
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    def write(self, k_BTKD: Tensor, v_BTKD: Tensor, positions_BT: Tensor) -> None:
        """Put T new keys and values at their positions."""
        rows = torch.arange(k_BTKD.shape[0], device=positions_BT.device)[:, None]
        self.k_BKSD[rows, :, positions_BT] = k_BTKD.to(self.k_BKSD.dtype)
        self.v_BKSD[rows, :, positions_BT] = v_BTKD.to(self.v_BKSD.dtype)

    def select(self, rows: Tensor) -> "KVCache":
        return KVCache(self.k_BKSD[rows], self.v_BKSD[rows])


@dataclass
class WindowCache:
    """The keys and values of a document's first `first` tokens, which stay, and a ring of its last ones:

        slot   0 ... first-1   position of the same number
        slot   first + r       the latest position that is r modulo the ring's size

    (B, K, first + ring, D). A slot that was never written holds garbage that no query reads.
    """

    k_BKSD: Tensor
    v_BKSD: Tensor
    first: int

    @classmethod
    def empty(
        cls,
        batch: int,
        heads: int,
        first: int,
        ring: int,
        head_dim: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> "WindowCache":
        cache = KVCache.empty(batch, heads, first + ring, head_dim, device, dtype)
        return cls(cache.k_BKSD, cache.v_BKSD, first)

    @property
    def ring(self) -> int:
        return self.k_BKSD.shape[2] - self.first

    def used(self, length: int) -> int:
        """No slot from this one on was written by any row of at most `length` tokens."""
        return self.first + min(length, self.ring)

    def positions(self, lengths_B: Tensor) -> Tensor:
        """(B, S): the position that each slot holds once a row has absorbed `lengths_B` tokens; negative if none."""
        first = torch.arange(self.first, device=lengths_B.device)
        r = torch.arange(self.ring, device=lengths_B.device)
        last_B1 = lengths_B[:, None] - 1
        return torch.cat((torch.where(first <= last_B1, first, -1), last_B1 - (last_B1 - r) % self.ring), 1)

    def write(self, k_BTKD: Tensor, v_BTKD: Tensor, positions_BT: Tensor, real_BT: Tensor | None) -> None:
        """Put new keys and values, at most `ring` of each row, where they belong; pads leave what is there."""
        rows = torch.arange(k_BTKD.shape[0], device=positions_BT.device)[:, None]
        slot = self.first + positions_BT % self.ring  # no two of a row are equal
        early = positions_BT < self.first
        if real_BT is not None:
            early = early & real_BT
        for held, new in ((self.k_BKSD, k_BTKD.to(self.k_BKSD.dtype)), (self.v_BKSD, v_BTKD.to(self.v_BKSD.dtype))):
            if real_BT is not None:
                new = torch.where(real_BT[..., None, None], new, held[rows, :, slot])
            held[rows, :, slot] = new
            if self.first:
                held[rows, :, torch.where(early, positions_BT, slot)] = new

    def select(self, rows: Tensor) -> "WindowCache":
        return WindowCache(self.k_BKSD[rows], self.v_BKSD[rows], self.first)
