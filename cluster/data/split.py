"""What is held out of each source, by the texts' hashes alone: the same for any units of work and any order.

    texts of a source   2 or more   those below validation_fraction; at least validation_min_kb of them, the lowest
                                    hashes first, at most half of them; one at least, and one is left
                        1           its end, by the same measures of its bytes: the text is cut in two
                        1, short    none

What one source holds out is held out of all: copies of a text are on one side. Copies within a source count once. A
text that is cut for one source is cut in all, at a place that depends on the text alone: its end is trained on nowhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cluster.data.held_out import text_hash, threshold
from cluster.data.shards import RowGroup, documents

if TYPE_CHECKING:
    from cluster.store.artifact import Artifact

SALT = "validation"
SHORTEST = 32  # bytes of an end that is held out: less tells nothing
_BREAKS = (b"\n", b" ", "。".encode(), "\u3000".encode())  # where a text is cut, the best first


class Wanted(NamedTuple):
    """How much is to be held out of a source; of a source with two texts or more nothing only where both are 0."""

    fraction: float
    min_kb: float

    @property
    def nothing(self) -> bool:
        return not self.fraction and not self.min_kb


@dataclass(frozen=True)
class Split:
    """Which texts are held out (uint64 hashes, ascending), and which are cut: the hash of each source's only text."""

    wanted: Wanted
    held_out: np.ndarray
    cut: dict[str, int] = field(default_factory=dict)

    def parts(self, data: bytes) -> tuple[bytes, bytes]:
        """What of a text (UTF-8) is trained on, and what is held out; either may be empty."""
        h = text_hash(data, SALT)
        if h in self.cut.values():
            at = cut_place(data, self.wanted)
            return data[:at], data[at:]
        at = int(np.searchsorted(self.held_out, np.uint64(h)))
        held = at < len(self.held_out) and self.held_out[at] == np.uint64(h)
        return (b"", data) if held else (data, b"")


class Survey(NamedTuple):
    """What the split needs to know of one source in one row group: its texts, each once, by their hashes."""

    hashes: np.ndarray  # uint64, ascending: the lowest, as many as can matter
    bytes: np.ndarray  # int64, of the texts of `hashes`


def survey_unit(unit: RowGroup, artifact: Artifact, wanted: Wanted) -> dict[str, Survey]:
    found: dict[str, list[tuple[int, int]]] = {}
    for source, text in documents(artifact, unit):
        data = text.encode()
        found.setdefault(source, []).append((text_hash(data, SALT), len(data)))
    return {source: survey(pairs, wanted) for source, pairs in found.items()}


def survey(pairs: list[tuple[int, int]], wanted: Wanted) -> Survey:
    """The survey of (hash, bytes) pairs."""
    hashes, first = np.unique(np.array([h for h, _ in pairs], dtype=np.uint64), return_index=True)
    sizes = np.array([b for _, b in pairs], dtype=np.int64)[first]
    # n texts that differ have n - 1 bytes or more, so no more than this are held out for the minimum; where there are
    # twice as many, the half doesn't bind.
    most = math.ceil(wanted.min_kb * 1000) + 1
    keep = max(_below(hashes, wanted.fraction), 2 * most)
    return Survey(hashes[:keep], sizes[:keep])


def choose(surveys: list[dict[str, Survey]], wanted: Wanted) -> Split:
    """The split of all sources' texts."""
    chosen, cut = [np.zeros(0, dtype=np.uint64)], {}
    if not wanted.nothing:
        for source in sorted({s for survey in surveys for s in survey}):
            parts = [s[source] for s in surveys if source in s]
            hashes, first = np.unique(np.concatenate([p.hashes for p in parts]), return_index=True)
            sizes = np.concatenate([p.bytes for p in parts])[first]
            if len(hashes) > 1:
                least = max(1, min(_reaching(sizes, wanted.min_kb), len(hashes) // 2))
                most = len(hashes) - 1
                chosen.append(hashes[: min(max(_below(hashes, wanted.fraction), least), most)])
            elif sizes[0] >= 2 * SHORTEST:
                cut[source] = int(hashes[0])
    whole = np.unique(np.concatenate(chosen))
    return Split(wanted, whole, cut)


def cut_place(data: bytes, wanted: Wanted) -> int:
    """Where the end of a text (UTF-8) begins that is held out; len(data) if the text is too short for one.

    The end has the fraction and the minimum of the text's bytes, white space around it not counted, at most half of
    them. It begins after a newline, or else a space, in its first quarter, or at the next character.
    """
    last = len(data.rstrip())
    size = last - (len(data) - len(data.lstrip()))
    if size < 2 * SHORTEST:
        return len(data)
    end = min(max(math.ceil(wanted.fraction * size), math.ceil(wanted.min_kb * 1000), SHORTEST), size // 2)
    at = last - end
    for mark in _BREAKS:
        found = data.find(mark, at, at + end // 4)
        if found >= 0:
            return found + len(mark)
    while data[at] & 0xC0 == 0x80:  # within a character
        at += 1
    return at


def _below(hashes: np.ndarray, fraction: float) -> int:
    return int(np.searchsorted(hashes, np.uint64(threshold(fraction))))


def _reaching(sizes: np.ndarray, kb: float) -> int:
    """How many of `sizes`, from the first, it takes to reach `kb`."""
    if kb <= 0:
        return 0
    return min(int(np.searchsorted(np.cumsum(sizes), kb * 1000)) + 1, len(sizes))
