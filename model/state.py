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
    """lengths_B: tokens absorbed by each row; longest: an upper bound of them, known without asking the
    device.
    """

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
    """Keys and values (B, H_kv, max_len, D); what lies past a row's length is garbage that no query reads."""

    k_BHSD: Tensor
    v_BHSD: Tensor

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

    def write(self, k_BHTD: Tensor, v_BHTD: Tensor, positions_BT: Tensor) -> None:
        """Put T new keys and values at their positions."""
        rows = torch.arange(k_BHTD.shape[0], device=positions_BT.device)[:, None]
        self.k_BHSD[rows, :, positions_BT] = k_BHTD.transpose(1, 2).to(self.k_BHSD.dtype)
        self.v_BHSD[rows, :, positions_BT] = v_BHTD.transpose(1, 2).to(self.v_BHSD.dtype)

    def select(self, rows: Tensor) -> "KVCache":
        return KVCache(self.k_BHSD[rows], self.v_BHSD[rows])
