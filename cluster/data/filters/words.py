"""Words of many documents at once, as numpy arrays over one buffer of bytes.

    texts → one uint8 buffer → word starts and stops → a 64-bit hash of each word → hashes of n-grams

No Python object is made for a word, which is what makes quality rules and MinHash run at tens of MB/s a core.
Hashes are taken modulo 2^64 on purpose (uint64 wraps): a word's hash is a polynomial in its bytes, computed from
prefix sums (Karp & Rabin 1987), and finished with MurmurHash3's mixer, which is a bijection.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
_P = 0x9E3779B97F4A7C15 | 1  # odd, so that it has an inverse modulo 2^64
_P_INVERSE = pow(_P, -1, 1 << 64)
_C1, _C2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)

_BYTES = np.arange(256)
_ALNUM = np.array([chr(b).isalnum() and b < 128 for b in range(256)])
HIGH = _BYTES >= 0x80  # bytes of letters beyond ASCII, of a text that is folded (fold.py)
LETTER = HIGH | np.array([chr(b).isalpha() and b < 128 for b in range(256)])
ALNUM = HIGH | _ALNUM
WORD = ALNUM | (ord("_") == _BYTES)  # runs of these are words for comparing texts
SOLID = ~np.isin(_BYTES, [9, 10, 11, 12, 13, 28, 29, 30, 31, 32])  # not white space, as str.split() without Unicode


def mix(x: U64) -> U64:
    """MurmurHash3's 64-bit finaliser: every input bit changes every output bit with probability about 1/2."""
    x = x ^ (x >> np.uint64(33))
    x = x * _C1
    x = x ^ (x >> np.uint64(33))
    x = x * _C2
    return x ^ (x >> np.uint64(33))


class Words:
    """The words of `texts`.

    Args:
        texts: n documents.
        table: (256,) bool, which bytes belong to words.
        split_unspaced: each letter of Chinese, Japanese, Thai, Khmer and the like is a word, as they have no spaces.

    Attributes:
        buffer: (bytes,) uint8, all texts with a space after each.
        offsets: (n + 1,) where each text begins in it.
        start, stop: (words,) each word's bytes.
        first: (n + 1,) the words of text d are first[d]:first[d + 1].
    """

    def __init__(self, texts: list[str], table: NDArray[np.bool_], split_unspaced: bool = False):
        encoded = [text.encode("utf-8", "replace") for text in texts]
        self.buffer = np.frombuffer(b" ".join([*encoded, b""]), np.uint8)
        self.offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(data) + 1 for data in encoded], out=self.offsets[1:])
        inside = table[self.buffer]
        edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
        if inside.size and inside[0]:
            edges = np.concatenate([[0], edges])
        self.start, self.stop = edges[0::2], edges[1::2]  # the buffer ends outside a word
        if split_unspaced:
            self._split_unspaced(inside)
        self.first = np.searchsorted(self.start, self.offsets)

    def _split_unspaced(self, inside: NDArray[np.bool_]) -> None:
        lead = self.buffer >= 0xE0
        lead &= (self.buffer <= 0xE9) | (self.buffer == 0xF0)
        at = np.flatnonzero(lead & inside)
        if not len(at):
            return
        first, second = self.buffer[at], self.buffer[at + 1]
        at = at[
            ((first >= 0xE3) & (first <= 0xE9))  # U+3000 … U+9FFF: kana, Han
            | ((first == 0xE0) & (second >= 0xB8))  # U+0E00 … U+0FFF: Thai, Lao, Tibetan
            | (
                (first == 0xE1) & (((second >= 0x80) & (second <= 0x82)) | (second == 0x9E) | (second == 0x9F))
            )  # Khmer …
            | ((first == 0xF0) & (second >= 0xA0) & (second <= 0xBF))  # U+20000 … U+3FFFF: Han
        ]
        if not len(at):
            return
        after = at + np.where(self.buffer[at] == 0xF0, 4, 3)
        cuts = np.concatenate([self.start, at, after[inside[np.minimum(after, inside.size - 1)]]])
        start = np.unique(cuts)
        run = np.searchsorted(self.start, start, "right") - 1
        following = np.concatenate([start[1:], [inside.size]])
        self.start, self.stop = start, np.minimum(self.stop[run], following)

    def __len__(self) -> int:
        return len(self.start)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(n,) words in each text."""
        return np.diff(self.first)

    @cached_property
    def document(self) -> NDArray[np.int64]:
        """(words,) the text that each word stands in."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(words,) characters in each word."""
        return self.count(np.where((_BYTES & 0xC0) == 0x80, False, True))

    def count(self, table: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(words,) bytes of each word that are in the table."""
        total = np.zeros(self.buffer.size + 1, np.int64)
        np.cumsum(table[self.buffer], out=total[1:])
        return total[self.stop] - total[self.start]

    @cached_property
    def hashes(self) -> U64:
        """(words,) a hash of each word's bytes."""
        size = self.buffer.size
        power, inverse = _powers(size + 1)
        prefix = np.zeros(size + 1, np.uint64)
        np.cumsum((self.buffer.astype(np.uint64) + np.uint64(1)) * power[:size], out=prefix[1:])
        return mix((prefix[self.stop] - prefix[self.start]) * inverse[self.start])

    def ngrams(self, n: int, among: NDArray[np.int64] | None = None) -> tuple[U64, NDArray[np.int64]]:
        """(hashes, index of the first word) of all runs of `n` words within a text.

        Args:
            among: only those that begin at one of these words.
        """
        count = len(self) - n + 1
        if count <= 0:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        if among is None:
            within = np.flatnonzero(self.document[n - 1 :] == self.document[:count])
            total = self.hashes[:count].copy()
            for k in range(1, n):
                total *= np.uint64(_P)
                total += self.hashes[k : k + count]
            return mix(total[within]), within
        within = among[among < count]
        within = within[self.document[within + n - 1] == self.document[within]]
        total = self.hashes[within]
        for k in range(1, n):
            total *= np.uint64(_P)
            total += self.hashes[within + k]
        return mix(total), within


_cache: list[tuple[U64, U64]] = []


def _powers(size: int) -> tuple[U64, U64]:
    """p^0 … p^(size-1) and their inverses modulo 2^64."""
    if not _cache or len(_cache[0][0]) < size:
        length = max(size, 1 << 20)
        tables = []
        for base in (_P, _P_INVERSE):
            table = np.full(length, base, np.uint64)
            table[0] = 1
            tables.append(np.multiply.accumulate(table))
        _cache[:] = [(tables[0], tables[1])]
    return _cache[0]


def batches(texts: list[str], size: int = 1 << 19) -> list[slice]:
    """Slices of about `size` characters: small enough that the arrays over their bytes stay in the cache."""
    slices, start, total = [], 0, 0
    for index, text in enumerate(texts):
        total += len(text)
        if total >= size:
            slices.append(slice(start, index + 1))
            start, total = index + 1, 0
    if start < len(texts):
        slices.append(slice(start, len(texts)))
    return slices
