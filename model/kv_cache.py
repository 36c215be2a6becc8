"""Attention's memory: keys and values of every token (`KVCache`), or of the first and the last ones (`WindowCache`).

The tensors may have more rows and places than are in use. In int8 each token's head has a scale of its own: a quarter
of float32's memory, and it is turned back into floats when it is read.

Shapes: R rows, B of them in use, T new tokens, K heads, S places, D head size.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Slots:
    """(R, K, S, D), and of int8 the scales (R, K, S, 1), float32."""

    parts: list[Tensor]

    @classmethod
    def empty(cls, shape: tuple[int, ...], device: Any, dtype: torch.dtype) -> "Slots":
        parts = [torch.zeros(shape, device=device, dtype=dtype)]
        if dtype == torch.int8:
            parts.append(torch.zeros((*shape[:-1], 1), device=device))
        return cls(parts)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and places."""
        return self.parts[0].shape[0], self.parts[0].shape[2]

    def resized(self, rows: int, places: int) -> "Slots":
        """Empty ones of like kind."""
        return Slots([x.new_zeros(rows, x.shape[1], places, x.shape[3]) for x in self.parts])

    def read(self, rows: int, places: int, dtype: torch.dtype) -> Tensor:
        """The first rows and places, (B, K, S, D)."""
        held, *scale = (x[:rows, :, :places] for x in self.parts)
        return held * scale[0].to(dtype) if scale else held.to(dtype)

    def get(self, rows: Any, places: Any) -> list[Tensor]:
        """As they are stored: (…, K, D) for tensors of rows and places."""
        return [x[rows, :, places] for x in self.parts]

    def put(self, rows: Any, places: Any, stored: list[Tensor]) -> None:
        for x, new in zip(self.parts, stored, strict=True):
            x[rows, :, places] = new

    def stored(self, new: Tensor) -> list[Tensor]:
        """Vectors (…, D) as they will be stored."""
        if len(self.parts) == 1:
            return [new.to(self.parts[0].dtype)]
        scale = new.detach().float().abs().amax(-1, keepdim=True) / 127
        return [(new.float() / scale.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8), scale]

    def copy(self, other: "Slots", at: int, rows: int, places: slice, source: slice) -> None:
        """The other's first `rows` into those from `at` on."""
        for mine, its in zip(self.parts, other.parts, strict=True):
            mine[at : at + rows, :, places] = its[:rows, :, source]

    def select(self, rows: Tensor) -> "Slots":
        return Slots([x[rows] for x in self.parts])

    def move(self, into: Tensor, rows: Tensor) -> None:
        for x in self.parts:
            x[into] = x[rows]


@dataclass
class KVCache:
    """Keys and values of every token; what lies past a row's length is garbage that no query reads."""

    k: Slots
    v: Slots
    rows: int

    @classmethod
    def empty(
        cls, batch: int, heads: int, max_len: int, head_dim: int, device: torch.device | str, dtype: torch.dtype
    ) -> "KVCache":
        shape = (batch, heads, max_len, head_dim)
        return cls(Slots.empty(shape, device, dtype), Slots.empty(shape, device, dtype), batch)

    @property
    def capacity(self) -> int:
        return self.k.size[1]

    def write(self, k_BTKD: Tensor, v_BTKD: Tensor, positions_BT: Tensor, real_BT: Tensor | None = None) -> None:
        """Put T new keys and values at their positions. real_BT: where pads' positions may lie past the last place."""
        rows = torch.arange(k_BTKD.shape[0], device=positions_BT.device)[:, None]
        if real_BT is not None:
            rows, t = real_BT.nonzero(as_tuple=True)
            k_BTKD, v_BTKD, positions_BT = (x[rows, t] for x in (k_BTKD, v_BTKD, positions_BT))
        for slots, new in ((self.k, k_BTKD), (self.v, v_BTKD)):
            slots.put(rows, positions_BT, slots.stored(new))

    def read(self, places: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of the first places, (B, K, S, D) each."""
        return self.k.read(self.rows, places, dtype), self.v.read(self.rows, places, dtype)

    def select(self, rows: Tensor) -> "KVCache":
        return KVCache(self.k.select(rows), self.v.select(rows), rows.numel())

    def reserve(self, rows: int, capacity: int, used: int) -> None:
        held, places = self.k.size
        if rows <= held and capacity <= places:
            return
        for name in ("k", "v"):
            old: Slots = getattr(self, name)
            new = old.resized(max(rows, held), max(capacity, places))
            new.copy(old, 0, self.rows, slice(used), slice(used))
            setattr(self, name, new)

    def append(self, other: "KVCache", used: int) -> None:
        for mine, its in ((self.k, other.k), (self.v, other.v)):
            mine.copy(its, self.rows, other.rows, slice(used), slice(used))
        self.rows += other.rows

    def move(self, into: Tensor, rows: Tensor, left: int) -> None:
        self.k.move(into, rows)
        self.v.move(into, rows)
        self.rows = left

    def mark(self) -> None:
        pass

    def rewind(self, lengths_B: Tensor, since_mark_B: Tensor | None) -> None:
        """Free: what is forgotten is written over before it is read."""


@dataclass
class WindowCache:
    """The keys and values of a document's first `first` tokens, which stay, and a ring of its last ones:

        place   0 ... first-1   position of the same number
        place   first + r       the latest position that is r modulo the ring's size

    A place that was never written holds garbage that no query reads. limits: `first` and the ring at most; they are
    less where a row has room for fewer tokens, which never come round.
    """

    k: Slots
    v: Slots
    rows: int
    first: int
    limits: tuple[int, int]
    _overwritten: list[tuple[Tensor, Tensor, list[Tensor], list[Tensor]]] | None = field(default=None, repr=False)

    @classmethod
    def empty(
        cls,
        batch: int,
        heads: int,
        limits: tuple[int, int],
        max_len: int,
        head_dim: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> "WindowCache":
        first, ring = (min(limit, max_len) for limit in limits)
        shape = (batch, heads, first + ring, head_dim)
        slots = (Slots.empty(shape, device, dtype) for _ in range(2))
        return cls(*slots, batch, first, limits)  # type: ignore[call-arg]

    @property
    def ring(self) -> int:
        return self.k.size[1] - self.first

    def used(self, length: int) -> int:
        """No place from this one on was written by any row of at most `length` tokens."""
        return self.first + min(length, self.ring)

    def positions(self, lengths_B: Tensor) -> Tensor:
        """(B, S): the position that each place holds once a row has absorbed `lengths_B` tokens; negative if none."""
        first = torch.arange(self.first, device=lengths_B.device)
        r = torch.arange(self.ring, device=lengths_B.device)
        last_B1 = lengths_B[:, None] - 1
        return torch.cat((torch.where(first <= last_B1, first, -1), last_B1 - (last_B1 - r) % self.ring), 1)

    def read(self, places: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of the first places, (B, K, S, D) each."""
        return self.k.read(self.rows, places, dtype), self.v.read(self.rows, places, dtype)

    def write(self, k_BTKD: Tensor, v_BTKD: Tensor, positions_BT: Tensor, real_BT: Tensor | None) -> None:
        """Put new keys and values, at most `ring` of each row, where they belong; pads leave what is there."""
        rows = torch.arange(k_BTKD.shape[0], device=positions_BT.device)[:, None]
        place = self.first + positions_BT % self.ring  # no two of a row are equal
        early = positions_BT < self.first
        if real_BT is not None:
            early = early & real_BT
        if self._overwritten is not None:
            self._overwritten.append((positions_BT, place, self.k.get(rows, place), self.v.get(rows, place)))
        for slots, new in ((self.k, k_BTKD), (self.v, v_BTKD)):
            stored = slots.stored(new)
            if real_BT is not None:
                held = slots.get(rows, place)
                stored = [torch.where(real_BT[..., None, None], x, y) for x, y in zip(stored, held, strict=True)]
            slots.put(rows, place, stored)
            if self.first:
                slots.put(rows, torch.where(early, positions_BT, place), stored)

    def select(self, rows: Tensor) -> "WindowCache":
        return WindowCache(self.k.select(rows), self.v.select(rows), rows.numel(), self.first, self.limits)

    def reserve(self, rows: int, capacity: int, used: int) -> None:
        first, ring = (min(limit, capacity) for limit in self.limits)
        held, _ = self.k.size
        if rows <= held and first <= self.first and ring <= self.ring:
            return
        old = WindowCache(self.k, self.v, self.rows, self.first, self.limits)
        self.first, ring = max(first, old.first), max(ring, old.ring)
        self.k, self.v = (x.resized(max(rows, held), self.first + ring) for x in (old.k, old.v))
        self.rows = 0
        self.append(old, used)

    def append(self, other: "WindowCache", used: int) -> None:
        """Rings of two sizes have not come round: their places are positions, and the larger one's rest is unused."""
        self._overwritten = None
        first, ring = min(self.first, other.first), min(self.ring, other.ring)
        parts = [(slice(first), slice(first))]
        parts.append((slice(self.first, self.first + ring), slice(other.first, other.first + ring)))
        for mine, its in ((self.k, other.k), (self.v, other.v)):
            for places, source in parts:
                mine.copy(its, self.rows, other.rows, places, source)
        self.rows += other.rows

    def move(self, into: Tensor, rows: Tensor, left: int) -> None:
        self.k.move(into, rows)
        self.v.move(into, rows)
        self.rows, self._overwritten = left, None

    def mark(self) -> None:
        self._overwritten = []

    def rewind(self, lengths_B: Tensor, since_mark_B: Tensor | None) -> None:
        """What new tokens took the places of comes back."""
        if self._overwritten is None:
            raise ValueError("WindowCache keeps nothing that is written over unless it is told to by `mark`")
        rows = torch.arange(self.rows, device=lengths_B.device)[:, None]
        for positions_BT, place, k, v in reversed(self._overwritten):
            undo = (positions_BT >= lengths_B[:, None])[..., None, None]
            for slots, old in ((self.k, k), (self.v, v)):
                now = slots.get(rows, place)
                slots.put(rows, place, [torch.where(undo, x, y) for x, y in zip(old, now, strict=True)])
        self._overwritten = None
