"""Where documents begin and end in a batch of packed rows: the only truth for masks, RoPE and scan resets.

    row 0:  a a a a b b b c        positions  0 1 2 3 0 1 2 0
    row 1:  d d d d d d d d        positions  0 1 2 3 4 5 6 7

A document's tokens must mix with no other's. Instead of a T x T mask, attention regroups the rows' tokens by document:
documents of like length become one batch (`Group`) of right-padded rows. Under causal attention, and in a scan, a pad
after the last token is never seen by a real one, so no mask exists at all, and RoPE's angles are 0, 1, 2, ... in each.
The regrouping is worked out once per batch and used by every layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """The tokens of a (B, T) batch regrouped by document length.

    index: (M,) the flat token that stands in each slot, M >= B*T; pads repeat their document's first token.
    slot: (B*T,) the slot in which each flat token stands.
    shapes: for each group, (documents, length); the groups follow each other in the M slots.
    sizes: for each group, its documents' real lengths (on the CPU), or None if all are as long as the group.
    """

    index: Tensor
    slot: Tensor
    shapes: tuple[tuple[int, int], ...]
    sizes: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Segments:
    """Documents in a batch of rows.

    positions_BT: each token's place in its document; a document starts wherever it does not go on by one.
    lengths_B: number of real tokens of each row where rows are right-padded (prefill), else None.
    whole: True if no row has a boundary inside.
    earlier: None, or an upper bound of the tokens that a state already remembers of any row (0: a prefill).
    """

    positions_BT: Tensor
    lengths_B: Tensor | None = None
    whole: bool = False
    earlier: int | None = None

    @classmethod
    def from_positions(cls, positions_BT: Tensor) -> "Segments":
        """From (B, T) positions that restart (at 0) where a document starts."""
        goes_on = positions_BT[:, 1:] == positions_BT[:, :-1] + 1
        return cls(positions_BT, None, bool(goes_on.all()))

    @classmethod
    def unbroken(cls, batch: int, length: int, device: torch.device | str = "cpu") -> "Segments":
        """One document a row."""
        return cls(torch.arange(length, device=device).expand(batch, length), None, True)

    @classmethod
    def padded(cls, lengths_B: Tensor, length: int) -> "Segments":
        """One document a row, right-padded to `length`; `lengths_B` tokens of each are real."""
        rows = torch.arange(length, device=lengths_B.device).expand(lengths_B.shape[0], length)
        return cls(rows, lengths_B, True)

    @classmethod
    def continued(cls, offset_B: Tensor, length: int, lengths_B: Tensor | None, earlier: int) -> "Segments":
        """Rows whose `length` tokens come after `offset_B` (at most `earlier`) that a state remembers."""
        positions_BT = offset_B[:, None] + torch.arange(length, device=offset_B.device)
        return cls(positions_BT, lengths_B, True, earlier)

    @property
    def longest(self) -> int:
        """No position is this large."""
        return (self.earlier or 0) + self.positions_BT.shape[1]

    @cached_property
    def real_BT(self) -> Tensor | None:
        """(B, T) bool: False for the pads of right-padded rows; None if there are none."""
        if self.lengths_B is None:
            return None
        return first(self.lengths_B, self.positions_BT.shape[1])

    def seen(self, places: int) -> Tensor:
        """(B, T, places) bool: which positions each token may look back at; made once for all layers."""
        if self._seen.get("places") != places:
            found = torch.arange(places, device=self.positions_BT.device) <= self.positions_BT[:, :, None]
            self._seen.update(places=places, found=found)
        return self._seen["found"]

    @cached_property
    def _seen(self) -> dict[str, Any]:
        return {}

    @cached_property
    def starts_BT(self) -> Tensor:
        """(B, T) bool: True at the first token of each document in the row (recurrent mixers reset there)."""
        starts = torch.ones_like(self.positions_BT, dtype=torch.bool)
        starts[:, 1:] = self.positions_BT[:, 1:] != self.positions_BT[:, :-1] + 1
        return starts

    @cached_property
    def bounds_N(self) -> Tensor:
        """(documents + 1,) int32: where each document of the flat (B*T) tokens starts, and where the last one ends."""
        first = self.starts_BT.reshape(-1).nonzero().squeeze(1)
        return torch.cat((first, first.new_tensor([self.positions_BT.numel()]))).int()

    @cached_property
    def groups(self) -> Groups:
        """Documents sorted by length and cut into groups, each padded to its longest.

        The lengths are rounded up to a ladder with steps of at most 1.5, so there are few groups and little
        padding; the ladder depends on each length alone, so a document's group shape says nothing about its
        neighbours.
        """
        first = self.starts_BT.reshape(-1).cpu().nonzero().squeeze(1)
        length = torch.diff(first, append=torch.tensor([self.positions_BT.numel()]))
        ladder = torch.tensor(_ladder(self.positions_BT.shape[1]))
        rung = torch.searchsorted(ladder, length)
        index, real, shapes, sizes = [], [], [], []
        for member in (rung == r for r in rung.unique()):
            start, size = first[member, None], length[member, None]
            within = torch.arange(int(size.max()))
            index.append(torch.where(within < size, start + within, start).reshape(-1))
            real.append((within < size).reshape(-1))
            shapes.append((start.shape[0], within.shape[0]))
            sizes.append(None if bool(real[-1].all()) else size[:, 0])
        index_M, real_M = torch.cat(index), torch.cat(real)
        slot_N = torch.empty(self.positions_BT.numel(), dtype=torch.long)
        slot_N[index_M[real_M]] = real_M.nonzero().squeeze(1)
        device = self.positions_BT.device
        return Groups(index_M.to(device), slot_N.to(device), tuple(shapes), tuple(sizes))


def by_document(mix: Callable[..., Tensor], segments: Segments, *parts_BTE: Tensor) -> Tensor:
    """`mix` on rows that hold one document each, from its first token: (B, T, E), ... -> (B, T, F).

    mix(*parts_nLE, sizes_n) -> (n, L, F), once per group. sizes_n: how many of each row's tokens are real, the others
    being pads after them whose results nobody reads; None if all are.
    """
    if segments.whole:
        return mix(*parts_BTE, segments.lengths_B)
    groups = segments.groups
    B, T = parts_BTE[0].shape[:2]
    lengths = [n * length for n, length in groups.shapes]
    slots = [_Regroup.apply(x.reshape(B * T, -1), groups.index, groups.slot).split(lengths) for x in parts_BTE]
    mixed = [
        mix(*(x.view(n, length, -1) for x in parts), sizes).reshape(n * length, -1)
        for parts, (n, length), sizes in zip(zip(*slots, strict=True), groups.shapes, groups.sizes, strict=True)
    ]
    return _Ungroup.apply(torch.cat(mixed), groups.slot).view(B, T, -1)


class _Regroup(torch.autograd.Function):
    """Tokens to slots. Each token has exactly one real slot, so the gradient is a gather too, not a scatter-add."""

    @staticmethod
    def forward(ctx, x_NE: Tensor, index: Tensor, slot: Tensor) -> Tensor:
        ctx.save_for_backward(slot)
        return x_NE.index_select(0, index)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None


class _Ungroup(torch.autograd.Function):
    """Slots back to tokens; a pad's slot gets no gradient."""

    @staticmethod
    def forward(ctx, x_ME: Tensor, slot: Tensor) -> Tensor:
        ctx.save_for_backward(slot)
        ctx.slots = x_ME.shape[0]
        return x_ME.index_select(0, slot)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (slot,) = ctx.saved_tensors
        out = grads[0].new_zeros(ctx.slots, grads[0].shape[1])
        return out.index_copy_(0, slot, grads[0]), None


def first(lengths_B: Tensor, length: int) -> Tensor:
    """(B, length) bool: True for each row's first `lengths_B`."""
    return torch.arange(length, device=lengths_B.device) < lengths_B[:, None]


def pads_apart(lengths_B: Tensor, length: int) -> Tensor:
    """(B, length) positions of one document a row, right-padded.

    The pads are a document of their own: where attention looks both ways, no real token may see them.
    """
    places = torch.arange(length, device=lengths_B.device)
    return torch.where(places < lengths_B[:, None], places, places - lengths_B[:, None])


def _ladder(longest: int) -> list[int]:
    """8, 12, 16, 24, 32, 48, ... up to at least `longest`."""
    rungs = [8]
    while rungs[-1] < longest:
        rungs.append(rungs[-1] * 3 // 2 if rungs[-1] & (rungs[-1] - 1) == 0 else rungs[-1] * 4 // 3)
    return rungs
