"""The quality rules' thresholds, with their published defaults. What they mean is in quality.py.

gopher   Rae et al. 2021, Table A1 and appendix A.1.1: quality and repetition
fineweb  Penedo et al. 2024, section 3.6
c4       Raffel et al. 2020, section 2.2; drops lines too
code     Li et al. 2023 (StarCoder), section 3.1
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

RuleSet = Literal["gopher", "gopher_quality", "gopher_repetition", "fineweb", "c4", "code"]


class _Rules(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GopherQuality(_Rules):
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


class GopherRepetition(_Rules):
    """Shares of a text that are said again. Counted as datatrove does: copies after the first, without overlap."""

    max_duplicate_lines: float = 0.30
    max_duplicate_paragraphs: float = 0.30
    max_duplicate_line_chars: float = 0.20
    max_duplicate_paragraph_chars: float = 0.20
    max_top_ngram_chars: dict[int, float] = {2: 0.20, 3: 0.18, 4: 0.16}
    max_duplicate_ngram_chars: dict[int, float] = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


class FineWeb(_Rules):
    min_punctuated_lines: float = 0.12
    max_short_lines: float = 0.67
    short_line: int = Field(default=30, description="characters")
    max_duplicate_line_chars: float = Field(default=0.01, description="datatrove's code; the paper says 0.1")
    max_newlines_to_words: float = 0.3


class C4(_Rules):
    """Line rules drop a line, the others the document."""

    require_end_punctuation: bool = Field(default=True, description="FineWeb turned this line rule off")
    min_words_in_line: int = Field(default=3, description="DCLM: 5")
    min_sentences: int = Field(default=5, description="DCLM: 3")
    max_word_length: int = 1_000
    no_braces: bool = True
    no_lorem_ipsum: bool = True
    no_javascript: bool = True
    no_policy: bool = True
    remove_citations: bool = True


class Code(_Rules):
    max_line_length: int = 1_000
    max_mean_line_length: float = 100.0
    min_alphabetic: float = Field(default=0.25, description="share of letters among all characters")
    min_lines: int = 3
    allow_generated: bool = Field(default=False, description="files that say of themselves that they were generated")


class Thresholds(_Rules):
    """Each set's numbers, e.g. [filter.thresholds.gopher_quality] min_words = 30."""

    gopher_quality: GopherQuality = GopherQuality()
    gopher_repetition: GopherRepetition = GopherRepetition()
    fineweb: FineWeb = FineWeb()
    c4: C4 = C4()
    code: Code = Code()
