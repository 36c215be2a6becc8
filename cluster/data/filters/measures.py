"""Small measures that several filters share."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cluster.data.filters.fold import HALF_LEAD, QUARTER_LEAD, fold, measured
from cluster.data.filters.words import ALNUM, SOLID, Words

Values = NDArray[np.float64]


def array(values: Iterable[float]) -> Values:
    return np.array(list(values), np.float64)


def share(part: NDArray, whole: NDArray) -> Values:
    return part / np.maximum(whole, 1)


def is_short(line: str, most: int) -> bool:
    """Whether a line takes no more than so many columns: wide characters have two, invisible ones none."""
    if line.isascii():
        return len(line) <= most
    seen = fold(line)
    return len(seen) <= most and len(seen) + sum(unicodedata.east_asian_width(c) in "WF" for c in seen) <= most


def per_document(words: Words, values: NDArray) -> NDArray[np.int64]:
    total = np.zeros(len(words) + 1, np.int64)
    np.cumsum(values, out=total[1:])
    return total[words.first[1:]] - total[words.first[:-1]]


class Counted:
    """The words of texts between white space, counted so that scripts without spaces compare.

    What stands between white space is one word; where it has letters of Chinese, Japanese, Thai and the like, it is as
    many as those letters usually make.

    Attributes:
        words: the texts' tokens, in the alphabet of fold.measured.
        weights: (tokens,) how many words each is.
        spaced: (tokens,) whether it is a word of a script with spaces.
    """

    def __init__(self, texts: list[str]):
        self.words = words = Words([measured(text) for text in texts], SOLID)
        halves, quarters = (words.count(np.arange(256) == lead) for lead in (HALF_LEAD, QUARTER_LEAD))
        unspaced = -(-halves // 2) - (-quarters // 4)
        others = words.count(ALNUM) > 3 * halves + 4 * quarters
        self.spaced = unspaced == 0
        self.weights = np.where(self.spaced, 1, unspaced + others)
        self.real = words.count(ALNUM) > 0

    def total(self, among: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """(n,) words in each text, or those of some tokens."""
        return per_document(self.words, self.weights if among is None else self.weights * among)


def repeats(pieces: list[str]) -> tuple[int, int, int]:
    """(copies after the first, their characters, all pieces)."""
    seen: set[str] = set()
    copies = chars = 0
    for piece in pieces:
        if piece in seen:
            copies += 1
            chars += len(piece)
        else:
            seen.add(piece)
    return copies, chars, max(len(pieces), 1)
