"""Which of our tensors are which of theirs, and how each lays them out: every step can be undone, bit for bit.

    Pair("blocks.0.mixer.qkv.weight", (q_proj, k_proj, v_proj), Rows((32, Turned(8)), (16, Turned(8)), (16, SAME)))
          ours                        theirs                    how theirs become ours

A layout is a permutation of the values, never arithmetic: `join` reads theirs into ours, `split` writes ours as theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Layout(Protocol):
    def join(self, theirs: Sequence[Tensor]) -> Tensor: ...
    def split(self, ours: Tensor) -> list[Tensor]: ...


@dataclass(frozen=True)
class Pair:
    """One of our tensors, by name, and those of theirs that it is made of."""

    ours: str
    theirs: tuple[str, ...]
    layout: Layout


def same(ours: str, theirs: str) -> Pair:
    return Pair(ours, (theirs,), SAME)


@dataclass(frozen=True)
class Same:
    def join(self, theirs: Sequence[Tensor]) -> Tensor:
        (tensor,) = theirs
        return tensor

    def split(self, ours: Tensor) -> list[Tensor]:
        return [ours]


SAME = Same()


@dataclass(frozen=True)
class Transposed:
    """A matrix kept as (in, out): GPT-2's Conv1D."""

    def join(self, theirs: Sequence[Tensor]) -> Tensor:
        (tensor,) = theirs
        return tensor.t()

    def split(self, ours: Tensor) -> list[Tensor]:
        return [ours.t()]


@dataclass(frozen=True)
class Turned:
    """Rows of heads of `head_dim`, whose first `rope_dim` channels RoPE turns.

    They pair (i, i + rope_dim / 2), we pair neighbours. Rows are a matrix's, a bias's or a norm's.
    """

    head_dim: int
    rope_dim: int

    def join(self, theirs: Sequence[Tensor]) -> Tensor:
        (tensor,) = theirs
        return self._each_head(tensor, 2, self.rope_dim // 2)

    def split(self, ours: Tensor) -> list[Tensor]:
        return [self._each_head(ours, self.rope_dim // 2, 2)]

    def _each_head(self, x: Tensor, outer: int, inner: int) -> Tensor:
        heads = x.reshape(-1, self.head_dim, *x.shape[1:])
        turned, rest = heads[:, : self.rope_dim], heads[:, self.rope_dim :]
        turned = turned.unflatten(1, (outer, inner)).transpose(1, 2).flatten(1, 2)
        return torch.cat((turned, rest), 1).reshape(x.shape)


@dataclass(frozen=True)
class Rows:
    """Several of theirs, one above the other; for each its number of rows and its own layout."""

    parts: tuple[tuple[int, Layout], ...]

    def join(self, theirs: Sequence[Tensor]) -> Tensor:
        return torch.cat([layout.join([t]) for (_, layout), t in zip(self.parts, theirs, strict=True)])

    def split(self, ours: Tensor) -> list[Tensor]:
        pieces = ours.split([rows for rows, _ in self.parts])
        return [t for (_, layout), piece in zip(self.parts, pieces, strict=True) for t in layout.split(piece)]


@dataclass(frozen=True)
class Stacked:
    """One of theirs for each expert, in a stack."""

    def join(self, theirs: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(theirs))

    def split(self, ours: Tensor) -> list[Tensor]:
        return list(ours.unbind())
