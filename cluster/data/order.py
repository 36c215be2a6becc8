"""The order of samples: sample s of a run is a pure function of (seed, s).

    s ── mixture ──▶ (source, n): the source's n-th sample ── n = epoch * rows + k ──▶ row = permutation(k)

`Permutation` is a keyed Feistel network with cycle walking (Black and Rogaway 2002): a bijection of [0, n) that is
computed for one index without the others, so an epoch of any size costs no memory, and any worker can ask for any
sample. `Mixture` is block-deterministic (Levanter's mixture.py): each block of B samples holds exactly its share of
each source, in an order shuffled by the block's key. Both are O(1) in the number of samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError

Indices = NDArray[np.int64]

ROUNDS = 8
LONGEST_BLOCK = 1 << 20  # samples; one is shuffled at once
MIN_BITS = 4  # a Feistel network over fewer bits reaches few of the permutations
_MULTIPLIERS = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))  # MurmurHash3's finaliser
_SHIFT = np.uint64(33)


@lru_cache(maxsize=4096)
def _round_keys(key: tuple[int | str, ...]) -> tuple[np.uint64, ...]:
    data = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8 * ROUNDS).digest()
    return tuple(np.frombuffer(data, dtype="<u8"))


class Permutation:
    """A bijection of [0, n), chosen by `key`.

    Args:
        n: size, from 1 to 2**62.
        key: integers and strings, e.g. (seed, source, epoch); another key is another, unrelated order.
    """

    def __init__(self, n: int, key: tuple[int | str, ...]):
        if not 1 <= n <= 1 << 62:
            raise ValueError(f"A permutation needs 1 to 2**62 items, not {n}.")
        self.n = n
        bits = max(MIN_BITS, (n - 1).bit_length())
        self._widths = (bits // 2, bits - bits // 2)  # of the left and the right part
        self._keys = _round_keys(key)

    def __call__(self, index: Indices | int) -> Indices:
        """Where `index` goes; vectorised, int64 of the same shape. Raises IndexError outside [0, n)."""
        return self._walk(index, self._forward)

    def inverse(self, index: Indices | int) -> Indices:
        """What goes to `index`."""
        return self._walk(index, self._backward)

    def _walk(self, index, step) -> Indices:
        given = np.asarray(index)
        if given.size and (given.min() < 0 or given.max() >= self.n):
            raise IndexError(f"Index outside [0, {self.n}).")
        values = np.atleast_1d(given).astype(np.uint64).ravel()
        # The network permutes a power of two; walking its cycle until it is back in [0, n) permutes [0, n).
        values = step(values)
        outside = np.flatnonzero(values >= self.n)
        while outside.size:
            walked = step(values[outside])
            values[outside] = walked
            outside = outside[walked >= self.n]
        return values.astype(np.int64).reshape(given.shape)

    def _forward(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left_bits, right_bits = self._widths
        left, right = x >> np.uint64(right_bits), x & _mask(right_bits)
        for key in self._keys:  # the parts may differ by a bit in width; they swap widths each round
            left, right = right, left ^ (_mix(right, key) & _mask(left_bits))
            left_bits, right_bits = right_bits, left_bits
        return (left << np.uint64(right_bits)) | right

    def _backward(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left_bits, right_bits = self._widths  # ROUNDS is even, so the widths are what they were at the start
        left, right = x >> np.uint64(right_bits), x & _mask(right_bits)
        for key in reversed(self._keys):
            left, right = right ^ (_mix(left, key) & _mask(right_bits)), left
            left_bits, right_bits = right_bits, left_bits
        return (left << np.uint64(right_bits)) | right


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


def _mix(x: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        x = x ^ key
        for multiplier in _MULTIPLIERS:
            x = (x ^ (x >> _SHIFT)) * multiplier
        return x ^ (x >> _SHIFT)


class Samples(NamedTuple):
    """Where samples lie: three int64 arrays of one length."""

    source: Indices  # index into Mixture.sources
    row: Indices
    epoch: Indices


class Mixture:
    """Samples of several sources, mixed by weight.

    Args:
        rows: rows of each source.
        weights: share of each source, in any unit; None: by rows. 0 leaves a source out.
        seed: of the whole order.
        block: samples in which the shares are exact (to the nearest whole sample); more where a source would have none.

    Raises:
        UserError: a weight for an unknown source, none for a known one, a negative or no positive weight, a weighted
            source without rows, or one whose share is less than a sample in LONGEST_BLOCK.
    """

    def __init__(
        self,
        rows: Mapping[str, int],
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        block: int = 1024,
    ):
        self.sources = tuple(sorted(rows))
        self.rows = np.array([rows[s] for s in self.sources], dtype=np.int64)
        self.seed, self.block = seed, block
        if not any(rows.values()):
            raise UserError(f"There are no training tokens in the sources {list(self.sources)}.")
        weights = {s: float(rows[s]) for s in self.sources} if weights is None else weights
        _check(rows, weights)
        self.weights = np.array([weights[s] for s in self.sources], dtype=np.float64)
        self.weights /= self.weights.sum()
        self.counts = largest_remainder(self.weights, self.block)
        while (lost := self._lost()) and self.block < LONGEST_BLOCK:
            self.block = min(2 * self.block, LONGEST_BLOCK)
            self.counts = largest_remainder(self.weights, self.block)
        if lost:
            raise UserError(
                f"The weights of {lost} come to less than one sample in {self.block:,}: give them more, "
                "or 0 to leave them out."
            )
        self._slots = np.repeat(np.arange(len(self.sources)), self.counts)
        self._block = lru_cache(maxsize=16)(self._shuffled)

    def _lost(self) -> list[str]:
        """Sources that should be read and have no sample in a block."""
        shares = zip(self.sources, self.weights, self.counts, strict=True)
        return [source for source, weight, count in shares if weight > 0 and not count]

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "_block"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._block = lru_cache(maxsize=16)(self._shuffled)

    def __call__(self, sample: Indices | int) -> Samples:
        """Source, row and epoch of each sample number."""
        sample = np.atleast_1d(np.asarray(sample, dtype=np.int64))
        block, within = np.divmod(sample, self.block)
        source, nth = np.empty_like(sample), np.empty_like(sample)
        for number in np.unique(block):
            here = block == number
            sources, before = self._block(int(number))
            source[here], nth[here] = sources[within[here]], before[within[here]]
        epoch, place = np.divmod(nth, self.rows[source])
        row = np.empty_like(sample)
        for s, e in set(zip(source.tolist(), epoch.tolist(), strict=True)):
            here = (source == s) & (epoch == e)
            row[here] = Permutation(int(self.rows[s]), (self.seed, self.sources[s], e))(place[here])
        return Samples(source, row, epoch)

    def _shuffled(self, number: int) -> tuple[Indices, Indices]:
        """A block: each sample's source, and how many of that source come before it in the whole run."""
        order = Permutation(self.block, (self.seed, "block", number))(np.arange(self.block))
        sources = self._slots[order]
        before = np.empty_like(sources)
        for s, count in enumerate(self.counts):
            before[sources == s] = number * count + np.arange(count)
        return sources, before


def _check(rows: Mapping[str, int], weights: Mapping[str, float]) -> None:
    unknown, absent = sorted(set(weights) - set(rows)), sorted(set(rows) - set(weights))
    if unknown:
        raise UserError(
            f"{unknown} {'has' if len(unknown) == 1 else 'have'} a weight, but the tokens have only the sources "
            f"{sorted(rows)}."
        )
    if absent:
        raise UserError(f"weights has nothing for {absent}; give each source a weight, 0 to leave it out.")
    wrong = {s: w for s, w in weights.items() if not 0 <= w < float("inf")}
    if wrong:
        raise UserError(f"Weights must be 0 or more, not {wrong}.")
    if not any(weights.values()):
        raise UserError(f"All weights of {sorted(rows)} are 0: at least one source must be read.")
    empty = [s for s, w in weights.items() if w > 0 and not rows[s]]
    if empty:
        raise UserError(f"{empty} have a weight but no training tokens: give them weight 0, or more text.")


def largest_remainder(weights: NDArray[np.float64], total: int) -> Indices:
    """Whole numbers in the ratio of the weights that add up to `total`, each within one of its exact share."""
    exact = weights / weights.sum() * total
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def rank_slice(batch_size: int, rank: int, world_size: int) -> slice:
    """A rank's part of a global batch: the parts of all ranks, joined, are the batch, for any number of ranks."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}: it must be from 0 to {world_size - 1}.")
    return slice(batch_size * rank // world_size, batch_size * (rank + 1) // world_size)
