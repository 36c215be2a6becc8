"""FineWeb's filter (Penedo et al. 2024, section 3.6): lines that end as sentences do, and lists."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from cluster.data.filters.contract import Check, Filter, Thresholds
from cluster.data.filters.fold import ENDS
from cluster.data.filters.measures import Counted, array, is_short, repeats, share

_END_MARKS = (".", "!", "?", "…", *ENDS)


class FineWebThresholds(Thresholds):
    min_punctuated_lines: float = 0.12
    max_short_lines: float = 0.67
    short_line: int = Field(default=30, description="characters; one of Chinese and the like is two")
    max_duplicate_line_chars: float = Field(default=0.01, description="datatrove's code; the paper says 0.1")
    max_newlines_to_words: float = 0.3


class FineWeb(Filter[FineWebThresholds]):
    """Is it made of sentences, or of lists and menus?"""

    name, config = "fineweb", FineWebThresholds

    def checks(self, texts: list[str]) -> Iterator[Check]:
        rules = self.thresholds
        lines = [[line for line in text.split("\n") if line and not line.isspace()] for text in texts]
        count = array([len(one) for one in lines])
        ends = array([sum(line.rstrip().endswith(_END_MARKS) for line in one) for one in lines])
        yield Check("min_punctuated_lines", share(ends, count), rules.min_punctuated_lines, True)
        short = array([sum(is_short(line, rules.short_line) for line in one) for one in lines])
        yield Check("max_short_lines", share(short, count), rules.max_short_lines, False)
        newlines = array([text.count("\n") for text in texts])
        size = array([len(text) for text in texts]) - newlines
        again = array([repeats(one)[1] for one in lines])
        yield Check("max_duplicate_line_chars", share(again, size), rules.max_duplicate_line_chars, False)
        words = Counted(texts).total()
        yield Check("max_newlines_to_words", share(newlines, words), rules.max_newlines_to_words, False)
