"""What a model remembers while it generates: one state per layer, and how many tokens each row has absorbed.

A mixer makes its own state (`new_state`), and reads and updates it in `forward`. Whatever it remembers, its rows can be

    select    copied, in any order                       append, drop   put after others, or taken out, in place
    rewind    set back to fewer tokens: since any time in attention's cache, since `mark` everywhere else

so that continuous batching and speculative decoding need no branch in a mixer. Attention's caches are in kv_cache.py;
a state of fixed size, a scan's or a convolution's, inherits from `Fixed`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

Again = Callable[[Tensor], object]


class LayerState(Protocol):
    """One layer's part; see `State`. used: no row has absorbed more tokens than that."""

    def select(self, rows: Tensor) -> Self: ...
    def reserve(self, rows: int, capacity: int, used: int) -> None: ...
    def append(self, other: Self, used: int) -> None: ...
    def move(self, into: Tensor, rows: Tensor, left: int) -> None: ...
    def mark(self) -> None: ...
    def rewind(self, lengths_B: Tensor, since_mark_B: Tensor | None) -> None: ...


@dataclass
class State:
    """All layers' states, of B rows with room for `capacity` tokens each.

    lengths_B: tokens absorbed by each row; longest: an upper bound of them, known without asking the device;
    reserved: rows that there is room for; marked_B: the lengths when `mark` was called.
    """

    layers: list[Any]
    lengths_B: Tensor
    longest: int = 0
    capacity: int = 0
    reserved: int = 0
    marked_B: Tensor | None = None

    @classmethod
    def join(cls, states: Sequence["State"]) -> "State":
        """A new state of all their rows, one state's after the other's, with the largest capacity of them."""
        joined = states[0].select(torch.arange(states[0].rows, device=states[0].lengths_B.device))
        for other in states[1:]:
            joined.append(other)
        return joined

    @property
    def rows(self) -> int:
        return self.lengths_B.numel()

    @property
    def nbytes(self) -> int:
        """Of all tensors, reserved rows included."""
        return _nbytes(self.layers)

    def advance(self, tokens: int, lengths_B: Tensor | None) -> "State":
        """After absorbing `tokens` more of each row, of which `lengths_B` were real."""
        lengths = self.lengths_B + (tokens if lengths_B is None else lengths_B)
        return replace(self, lengths_B=lengths, longest=self.longest + tokens)

    def moved_to(self, empty: "State", rows: int) -> "State":
        """Into another one with its room and so many rows, layer by layer; nothing is left of this one."""
        for i, layer in enumerate(self.layers):
            empty.layers[i].reserve(rows, empty.capacity, 0)
            empty.layers[i].append(layer, self.longest)
            self.layers[i] = None
        return State(empty.layers, self.lengths_B, self.longest, empty.capacity, max(rows, self.rows))

    def select(self, rows: Tensor) -> "State":
        """A copy of only these rows (int64 indices), in that order; nothing is marked in it."""
        layers = [layer.select(rows) for layer in self.layers]
        state = State(layers, self.lengths_B[rows], 0, self.capacity, rows.numel())
        state._measure()
        return state

    def reserve(self, rows: int, capacity: int) -> None:
        """Make room for so many rows and tokens, at least: what is appended within it copies nothing that is here."""
        self.capacity, self.reserved = max(self.capacity, capacity), max(self.reserved, self.rows, rows)
        for layer in self.layers:
            layer.reserve(self.reserved, self.capacity, self.longest)

    def append(self, other: "State", rows: Tensor | None = None) -> None:
        """The other's rows, or only some of them, come after these; it stays as it is."""
        lengths_B = other.lengths_B if rows is None else other.lengths_B[rows]
        self.reserve(self.rows + lengths_B.numel(), other.capacity)
        for mine, its in zip(self.layers, other.layers, strict=True):
            mine.append(its if rows is None else its.select(rows), other.longest)
        self.lengths_B = torch.cat((self.lengths_B, lengths_B))
        self.longest, self.marked_B = max(self.longest, other.longest), None

    def drop(self, rows: Sequence[int]) -> list[int]:
        """These rows leave, and the last ones move into their places: nothing else is copied.

        Returns which of the old rows stands in each place now.
        """
        leaving, left = set(rows), self.rows - len(set(rows))
        holes = [row for row in range(left) if row in leaving]
        movers = [row for row in range(left, self.rows) if row not in leaving]
        device = self.lengths_B.device
        into, moved = (torch.tensor(x, dtype=torch.long, device=device) for x in (holes, movers))
        for layer in self.layers:
            layer.move(into, moved, left)
        order = list(range(left))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        self.lengths_B, self.marked_B = self.lengths_B[torch.tensor(order, dtype=torch.long, device=device)], None
        self._measure()
        return order

    def mark(self) -> None:
        """`rewind` may go back to here, and no further, until the next `mark`, `append`, `drop` or `rewind`."""
        self.marked_B = self.lengths_B
        for layer in self.layers:
            layer.mark()

    def rewind(self, lengths_B: Tensor) -> None:
        """Forget all but each row's first `lengths_B` tokens.

        ValueError for more than there are, or fewer than at the mark; and without a mark, if a layer needs one.
        """
        least_B = torch.zeros_like(self.lengths_B) if self.marked_B is None else self.marked_B
        if bool(((lengths_B < least_B) | (lengths_B > self.lengths_B)).any()):
            raise ValueError(
                f"a state of {self.lengths_B.tolist()} tokens, marked at {least_B.tolist()}, "
                f"can't be rewound to {lengths_B.tolist()}"
            )
        since_mark_B = None if self.marked_B is None else lengths_B - self.marked_B
        for layer in self.layers:
            layer.rewind(lengths_B, since_mark_B)
        self.lengths_B, self.marked_B = lengths_B, None
        self._measure()

    def _measure(self) -> None:
        self.longest = int(self.lengths_B.max()) if self.rows else 0


class Fixed:
    """A state whose size doesn't depend on a row's length: a dataclass of tensors (B, …) and of states like itself.

    `forward` replaces the tensors and never writes into them, so a mark is a reference to the old ones, and what was
    absorbed since then, as functions that absorb the first tokens of it again.
    """

    _before: list[Tensor] | None = None
    _since: list[tuple[Tensor | None, int, Again]]

    def absorbed(self, tokens: int, lengths_B: Tensor | None, again: Again) -> None:
        """A mixer says what it did: again(n_B) absorbs only each row's first n_B of those tokens."""
        if self._before is not None:
            self._since.append((lengths_B, tokens, again))

    def select(self, rows: Tensor) -> Self:
        return type(self)(*(x[rows] if isinstance(x, Tensor) else x.select(rows) for x in self._parts()))

    def reserve(self, rows: int, capacity: int, used: int) -> None:
        pass

    def append(self, other: Self, used: int) -> None:
        self._before = None
        for f, its in zip(fields(self), other._parts(), strict=True):  # type: ignore[arg-type]
            mine = getattr(self, f.name)
            if isinstance(mine, Tensor):
                setattr(self, f.name, torch.cat((mine, its)))
            else:
                mine.append(its, used)

    def move(self, into: Tensor, rows: Tensor, left: int) -> None:
        self._before = None
        for f, mine in zip(fields(self), self._parts(), strict=True):  # type: ignore[arg-type]
            if isinstance(mine, Tensor):
                mine[into] = mine[rows]
                setattr(self, f.name, mine[:left])
            else:
                mine.move(into, rows, left)

    def mark(self) -> None:
        self._before, self._since = [x for x in self._parts() if isinstance(x, Tensor)], []
        for part in self._parts():
            if not isinstance(part, Tensor):
                part.mark()

    def rewind(self, lengths_B: Tensor, since_mark_B: Tensor | None) -> None:
        if self._before is None or since_mark_B is None:
            raise ValueError(f"{type(self).__name__} keeps no earlier state unless it is told to by `mark`")
        before, self._before = iter(self._before), None
        for f, part in zip(fields(self), self._parts(), strict=True):  # type: ignore[arg-type]
            if isinstance(part, Tensor):
                setattr(self, f.name, next(before))
            else:
                part.rewind(lengths_B, since_mark_B)
        for real_B, tokens, again in self._since:
            n_B = since_mark_B.clamp(max=tokens) if real_B is None else torch.minimum(since_mark_B, real_B)
            again(n_B)
            since_mark_B = since_mark_B - n_B
        self._since = []

    def _parts(self) -> list[Any]:
        return [getattr(self, f.name) for f in fields(self)]  # type: ignore[arg-type]


def _nbytes(held: Any) -> int:
    if isinstance(held, Tensor):
        return held.nbytes
    if is_dataclass(held):
        return sum(_nbytes(getattr(held, f.name)) for f in fields(held))
    return sum(map(_nbytes, held)) if isinstance(held, list | tuple) else 0
