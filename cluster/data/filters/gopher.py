"""Gopher's filters (Rae et al. 2021, Table A1 and appendix A.1.1): quality, and repetition.

Words are what stands between white space, as in the paper and in Dolma; datatrove, whose counting of repetition is
followed otherwise, splits punctuation off. Of scripts without spaces see measures.Counted; their words have no length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cluster.data.filters.contract import Check, Filter, Thresholds
from cluster.data.filters.fold import fold
from cluster.data.filters.measures import Counted, array, per_document, repeats, share
from cluster.data.filters.words import LETTER, SOLID, Words


class GopherQualityThresholds(Thresholds):
    """Words are what stands between white space; words of symbols alone count in shares, not in lengths."""

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: float = 3.0
    max_mean_word_length: float = 10.0
    max_hash_to_words: float = 0.1
    max_ellipsis_to_words: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_words_with_letter: float = 0.8
    min_stop_words: int = Field(default=2, description="different ones of: the be to of and that have with")


class GopherRepetitionThresholds(Thresholds):
    """Shares of a text that are said again. Counted as datatrove does: copies after the first, without overlap."""

    max_duplicate_lines: float = 0.30
    max_duplicate_paragraphs: float = 0.30
    max_duplicate_line_chars: float = 0.20
    max_duplicate_paragraph_chars: float = 0.20
    max_top_ngram_chars: dict[int, float] = Field({2: 0.20, 3: 0.18, 4: 0.16})
    max_duplicate_ngram_chars: dict[int, float] = Field({5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10})


_BULLETS = ("-", "*", "•", "‣", "▶", "◀", "◦", "■", "□", "▪", "▫", "–")
_STOP_WORDS = re.compile(r"\b(?:the|be|to|of|and|that|have|with)\b", re.IGNORECASE)


class GopherQuality(Filter[GopherQualityThresholds]):
    """Does it read like written language?"""

    name, config = "gopher_quality", GopherQualityThresholds

    def checks(self, texts: list[str]) -> Iterator[Check]:
        rules = self.thresholds
        counted = Counted(texts)
        words, count_all = counted.words, counted.total()
        n_real = counted.total(counted.real)
        yield Check("min_words", n_real, rules.min_words, True)
        yield Check("max_words", n_real, rules.max_words, False)
        spaced = counted.real & counted.spaced
        n_spaced = per_document(words, spaced)
        length = share(per_document(words, np.where(spaced, words.lengths, 0)), n_spaced)
        length[2 * n_spaced < n_real] = np.nan  # of a script without spaces: no word's length can be told
        yield Check("min_mean_word_length", length, rules.min_mean_word_length, True)
        yield Check("max_mean_word_length", length, rules.max_mean_word_length, False)
        hashes = array([text.count("#") for text in texts])
        yield Check("max_hash_to_words", share(hashes, count_all), rules.max_hash_to_words, False)
        ellipses = array([text.count("...") + text.count("…") for text in texts])
        yield Check("max_ellipsis_to_words", share(ellipses, count_all), rules.max_ellipsis_to_words, False)
        lines = [[line for line in text.split("\n") if line and not line.isspace()] for text in texts]
        count = array([len(one) for one in lines])
        bullets = array([sum(line.lstrip().startswith(_BULLETS) for line in one) for one in lines])
        yield Check("max_bullet_lines", share(bullets, count), rules.max_bullet_lines, False)
        ends = array([sum(line.rstrip().endswith(("...", "…")) for line in one) for one in lines])
        yield Check("max_ellipsis_lines", share(ends, count), rules.max_ellipsis_lines, False)
        letters = share(counted.total(words.count(LETTER) > 0), count_all)
        yield Check("min_words_with_letter", letters, rules.min_words_with_letter, True)
        stop = array([_stop_words(text, rules.min_stop_words) for text in texts])
        yield Check("min_stop_words", stop, rules.min_stop_words, True)


def _stop_words(text: str, enough: int) -> int:
    found: set[str] = set()
    for match in _STOP_WORDS.finditer(text):
        found.add(match[0].lower())
        if len(found) >= enough:
            break
    return len(found)


class GopherRepetition(Filter[GopherRepetitionThresholds]):
    """Does it say the same again and again?"""

    name, config = "gopher_repetition", GopherRepetitionThresholds

    def checks(self, texts: list[str]) -> Iterator[Check]:
        rules = self.thresholds
        size = array([len(text) for text in texts])
        paragraphs = [repeats(_paragraphs(text)) for text in texts]
        part = array([count / of for count, _, of in paragraphs])
        yield Check("max_duplicate_paragraphs", part, rules.max_duplicate_paragraphs, False)
        chars = share(array([chars for _, chars, _ in paragraphs]), size)
        yield Check("max_duplicate_paragraph_chars", chars, rules.max_duplicate_paragraph_chars, False)
        lines = [repeats(_lines(text)) for text in texts]
        part = array([count / of for count, _, of in lines])
        yield Check("max_duplicate_lines", part, rules.max_duplicate_lines, False)
        chars = share(array([chars for _, chars, _ in lines]), size)
        yield Check("max_duplicate_line_chars", chars, rules.max_duplicate_line_chars, False)
        ngrams = _Ngrams(Words([fold(text) for text in texts], SOLID))
        for n, bound in rules.max_top_ngram_chars.items():
            yield Check(f"max_top_{n}gram_chars", share(ngrams.top_chars(n), size), bound, False)
        for n, bound in rules.max_duplicate_ngram_chars.items():
            yield Check(f"max_duplicate_{n}gram_chars", share(ngrams.repeated_chars(n), size), bound, False)


def _paragraphs(text: str) -> list[str]:
    """Parts between blank lines, as re.split(r"\\n{2,}", text.strip()) has them."""
    return [part for piece in text.strip().split("\n\n") if (part := piece.lstrip("\n"))] or [""]


def _lines(text: str) -> list[str]:
    return [line for line in text.strip().split("\n") if line] or [""]


class _Repeated(NamedTuple):
    """The n-grams that stand more than once in their document."""

    at: NDArray[np.int64]  # index of the first word of each copy, ascending
    group: NDArray[np.int64]  # which n-gram it is
    first: NDArray[np.int64]  # (groups,) where each stands first
    size: NDArray[np.int64]  # (groups,) how often


class _Ngrams:
    """Repetition of n-grams in a batch of documents.

    Only where an n-gram is repeated can a longer one be, so each length looks at what the next shorter one left: the
    sorting is done once, on the shortest.
    """

    def __init__(self, words: Words):
        self.words = words
        self.salt = words.document.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        self.chars = np.zeros(len(words) + 1, np.int64)
        np.cumsum(words.lengths, out=self.chars[1:])
        self.known: dict[int, _Repeated] = {}

    def repeated(self, n: int) -> _Repeated:
        if n not in self.known:
            shorter = max((m for m in self.known if m < n), default=None)
            hashes, at = self.words.ngrams(n, None if shorter is None else self.known[shorter].at)
            keys = hashes ^ self.salt[at]
            order = np.argsort(keys)
            ordered = keys[order]
            new = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(order)]
            size = np.diff(np.append(np.flatnonzero(new), len(order)))
            often = size > 1
            group = np.empty(len(order), np.int64)
            group[order] = np.cumsum(new) - 1
            inside = often[group]  # `at` is ascending, and so are its parts
            at, group = at[inside], (np.cumsum(often) - 1)[group[inside]]
            first = np.full(int(often.sum()), len(self.words), np.int64)
            np.minimum.at(first, group, at)
            self.known[n] = _Repeated(at, group, first, size[often])
        return self.known[n]

    def top_chars(self, n: int) -> NDArray[np.int64]:
        """(documents,) characters of the commonest n-gram, with the spaces between its words, times its count.

        Of several that are as common the first counts. One that occurs once is no repetition and counts 0.
        """
        found = self.repeated(n)
        top = np.zeros(len(self.words.counts), np.int64)
        document = self.words.document[found.first]
        # sorted so that the best of each document comes last: more copies, then the earlier place
        order = np.lexsort((-found.first, found.size, document))
        best = order[np.append(document[order][1:] != document[order][:-1], True)[: len(order)]]
        chars = self.chars[found.first[best] + n] - self.chars[found.first[best]] + n - 1
        top[document[best]] = chars * found.size[best]
        return top

    def repeated_chars(self, n: int) -> NDArray[np.int64]:
        """(documents,) characters in n-grams that came before, walking on behind each one found."""
        found = self.repeated(n)
        chars = np.zeros(len(self.words.counts), np.int64)
        seen = np.zeros(len(found.size), bool).tolist()
        copies, free = [], 0
        for at, group in zip(found.at.tolist(), found.group.tolist(), strict=True):
            if at < free:
                continue
            if seen[group]:
                copies.append(at)
                free = at + n
            else:
                seen[group] = True
        places = np.array(copies, np.int64)
        np.add.at(chars, self.words.document[places], self.chars[places + n] - self.chars[places])
        return chars
