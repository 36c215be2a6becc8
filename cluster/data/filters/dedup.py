"""Exact and near duplicates: which documents say the same, and which one of them stays.

    text → words → 5-word shingles → MinHash signature (bands x rows) → band keys → clusters → smallest id stays

Two documents with Jaccard similarity s of their sets of shingles share a minimum with probability s, and at least
one of b bands of r rows with probability 1 - (1 - s^r)^b  (Broder 1997; Leskovec, Rajaraman, Ullman, ch. 3).
The default, 14 x 8 over 5-word shingles, is FineWeb's (Penedo et al. 2024): .053, .565, .924, 1.000 at .5, .7, .8, .9.

The hash family is h(x) = (a·x + b mod 2^64) >> 32 with odd a (multiply-shift, Dietzfelbinger et al. 1997) over
shingles that are already mixed 64-bit hashes. Its arithmetic is modulo 2^64, which is what uint64 does; families
modulo a prime overflow silently there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.data.filters.fold import compared
from cluster.data.filters.words import U64, WORD, Words, batches, mix

NEVER = np.uint32(0xFFFFFFFF)
WORDLESS = np.uint64(0)  # the band key of texts without words: they are no copies of each other


@dataclass(frozen=True)
class MinHash:
    """Signatures of `bands * rows` minima over the shingles of `ngram` words."""

    bands: int = 14
    rows: int = 8
    ngram: int = 5
    seed: int = 1

    def signatures(self, texts: list[str]) -> NDArray[np.uint32]:
        """(n, bands * rows) minima; a text without any word has NEVER everywhere."""
        parts = [self._signatures(texts[part]) for part in batches(texts)]
        return np.concatenate(parts) if parts else np.zeros((0, self.bands * self.rows), np.uint32)

    def _signatures(self, texts: list[str]) -> NDArray[np.uint32]:
        values, first = shingles(texts, self.ngram)
        found = np.full((self.bands * self.rows, len(texts)), NEVER, np.uint32)
        full = np.flatnonzero(np.diff(first))
        if len(full):
            scratch, starts = np.empty_like(values), first[full]
            for row, (a, b) in zip(found, self._family(), strict=True):
                np.multiply(values, a, out=scratch)
                np.add(scratch, b, out=scratch)
                # min(x >> 32) = min(x) >> 32
                row[full] = np.minimum.reduceat(scratch, starts) >> np.uint64(32)
        return found.T

    def _family(self) -> list[tuple[np.uint64, np.uint64]]:
        draw = np.random.Generator(np.random.PCG64(self.seed))
        pairs = draw.integers(0, 1 << 64, (self.bands * self.rows, 2), np.uint64, endpoint=False)
        return [(a | np.uint64(1), b) for a, b in pairs]

    def band_keys(self, signatures: NDArray[np.uint32]) -> U64:
        """(n, bands) one key a band: equal where all its rows are, else different but for 1 in 2^64."""
        rows = signatures.reshape(len(signatures), self.bands, self.rows).astype(np.uint64)
        keys = np.zeros(rows.shape[:2], np.uint64)
        for row in range(self.rows):
            keys = mix(keys + rows[:, :, row] + np.uint64(row + 1))
        keys[(signatures == NEVER).all(axis=1)] = WORDLESS
        return keys


def shingles(texts: list[str], ngram: int) -> tuple[U64, NDArray[np.int64]]:
    """(hashes, first): text d's shingles are hashes[first[d]:first[d + 1]]; a shorter text is one shingle.

    Words are runs of letters, digits and `_` in lower case, so that spacing, punctuation and typography don't count.
    """
    words = Words([compared(text) for text in texts], WORD, split_unspaced=True)
    values, at = words.ngrams(ngram)
    counts = np.maximum(words.counts - (ngram - 1), 0)
    short = np.flatnonzero((counts == 0) & (words.counts > 0))
    if len(short):
        starts = words.first[:-1][short]
        place = words.hashes * np.uint64(2) + np.uint64(1)
        order = np.arange(len(words)) - words.first[words.document]
        weighted = mix(place + order.astype(np.uint64))
        whole = mix(np.array([weighted[s : s + words.counts[d]].sum() for s, d in zip(starts, short, strict=True)]))
        values = np.concatenate([values, whole])
        order = np.argsort(np.concatenate([words.document[at], short]), kind="stable")
        values = values[order]
        counts[short] = 1
    first = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(counts, out=first[1:])
    return values, first


def digest(text: str) -> bytes:
    """16 bytes that are equal for equal texts, but for white space at line ends and around the text."""
    plain = "\n".join(line.rstrip() for line in text.strip().split("\n"))
    return hashlib.blake2b(plain.encode("utf-8", "replace"), digest_size=16).digest()


def clusters(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """(count,) the smallest member of each one's cluster: what `pairs`, (p, 2) of 0 … count - 1, connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (count, count))
    labels = connected_components(edges, directed=False)[1]
    return np.unique(labels, return_index=True)[1][labels]


def candidates(keys: NDArray) -> NDArray[np.int64]:
    """(pairs, 2) rows with equal keys: each row with the first of its group. `keys` is (n,) of any sortable type."""
    if len(keys) < 2:
        return np.zeros((0, 2), np.int64)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    same = ordered[1:] == ordered[:-1]
    starts = np.concatenate([[True], ~same])
    first = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    again = np.flatnonzero(same) + 1
    return np.stack([first[again], order[again]], axis=1)


def find_duplicates(
    ids: list[str], digests: NDArray[np.uint64], keys: U64 | None
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Which document stays for each, and whether it is the same text.

    Args:
        ids: n names. The smallest of a cluster stays, so that the order of the documents doesn't matter.
        digests: (n, 2) the halves of `digest`.
        keys: (n, bands) band keys, or None to compare whole texts only.
    Returns:
        (n,) index of the document that stays (its own, if it does), and (n,) where it is an exact duplicate.
    """
    rank = np.argsort(np.array(ids, dtype=object), kind="stable")  # by code points, as Python compares strings
    place = np.empty(len(ids), np.int64)
    place[rank] = np.arange(len(ids))
    pairs = np.ascontiguousarray(digests[rank]).view("S16")[:, 0]  # equal as 16 bytes, NULs too: all have one length
    exact = np.arange(len(ids))
    same = [candidates(pairs)]
    exact[same[0][:, 1]] = same[0][:, 0]
    roots = exact
    if keys is not None:
        ordered = keys[rank]
        for band in range(keys.shape[1]):
            worded = np.flatnonzero(ordered[:, band] != WORDLESS)
            same.append(worded[candidates(ordered[worded, band])])
        roots = clusters(len(ids), np.concatenate(same))
    is_exact = exact != np.arange(len(ids))
    return rank[roots][place], is_exact[place]
