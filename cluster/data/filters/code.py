"""The filter for source code (Li et al. 2023, StarCoder, section 3.1): long lines, few letters, generated files."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from pydantic import Field

from cluster.data.filters.contract import Check, Filter, Thresholds
from cluster.data.filters.fold import fold
from cluster.data.filters.measures import array, per_document, share
from cluster.data.filters.words import LETTER, SOLID, Words

_GENERATED = re.compile(r"@generated|auto-?generated|automatically generated|do not edit", re.IGNORECASE)


class CodeThresholds(Thresholds):
    max_line_length: int = 1_000
    max_mean_line_length: float = 100.0
    min_alphabetic: float = Field(default=0.25, description="share of letters among all characters")
    min_lines: int = 3
    allow_generated: bool = Field(default=False, description="files that say of themselves that they were generated")


class Code(Filter[CodeThresholds]):
    """Is it source code that a person wrote?"""

    name, config = "code", CodeThresholds

    def checks(self, texts: list[str]) -> Iterator[Check]:
        rules = self.thresholds
        lines = [text.rstrip("\n").split("\n") for text in texts]
        count = array([len(one) for one in lines])
        yield Check("min_lines", count, rules.min_lines, True)
        longest = array([max(map(len, one)) for one in lines])
        yield Check("max_line_length", longest, rules.max_line_length, False)
        mean = share(array([sum(map(len, one)) for one in lines]), count)
        yield Check("max_mean_line_length", mean, rules.max_mean_line_length, False)
        whole = Words([fold(text) for text in texts], SOLID)
        letters = share(per_document(whole, whole.count(LETTER)), np.diff(whole.offsets) - 1)
        yield Check("min_alphabetic", letters, rules.min_alphabetic, True)
        if not rules.allow_generated:
            said = array([bool(_GENERATED.search(text[:2000])) for text in texts])
            yield Check("generated", said, 0, False)
