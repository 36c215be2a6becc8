"""Small measures that several filters share."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cluster.data.filters.words import Words

Values = NDArray[np.float64]


def array(values: Iterable[float]) -> Values:
    return np.array(list(values), np.float64)


def share(part: NDArray, whole: NDArray) -> Values:
    return part / np.maximum(whole, 1)


def per_document(words: Words, values: NDArray) -> NDArray[np.int64]:
    total = np.zeros(len(words) + 1, np.int64)
    np.cumsum(values, out=total[1:])
    return total[words.first[1:]] - total[words.first[:-1]]


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
