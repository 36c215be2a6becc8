"""C4's filter (Raffel et al. 2020, section 2.2): drops a text's bad lines, or the text."""

from __future__ import annotations

import re

from pydantic import Field

from cluster.data.filters.contract import Filter, Thresholds, Verdict
from cluster.data.filters.fold import ENDS, fold
from cluster.data.filters.measures import Counted

_C4_ENDS = (".", "?", "!", '"', "'")  # of a folded line: of any script
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_SENTENCE = re.compile(f"[.!?…]+[\"')\\]”’»]*(?=\\s|$)|[{ENDS}]+")


class C4Thresholds(Thresholds):
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


class C4(Filter[C4Thresholds]):
    """Which of its lines are text?"""

    name, config = "c4", C4Thresholds

    def judge(self, texts: list[str]) -> list[Verdict]:
        return [self._judge(text) for text in texts]

    def _judge(self, text: str) -> Verdict:
        rules = self.thresholds
        low = text.lower()
        if rules.no_lorem_ipsum and "lorem ipsum" in low:
            return Verdict(text, "c4.no_lorem_ipsum", "")
        if rules.no_braces and "{" in text:
            return Verdict(text, "c4.no_braces", "")
        kept, sentences = [], 0
        for line in text.split("\n"):
            line = (_CITATION.sub("", line) if rules.remove_citations else line).strip()
            plain = fold(line).rstrip()
            words, low = plain.split(), plain.lower()
            if (
                (len(words) < rules.min_words_in_line and _words(line) < rules.min_words_in_line)
                or (any(len(word) > rules.max_word_length for word in words) and _has_long(line, rules.max_word_length))
                or (rules.require_end_punctuation and (not plain.endswith(_C4_ENDS) or line.endswith(("...", "…"))))
                or (rules.no_javascript and "javascript" in low)
                or (rules.no_policy and any(policy in low for policy in _POLICY))
            ):
                continue
            kept.append(line)
            sentences += max(len(_SENTENCE.findall(line)), 1)
        if sentences < rules.min_sentences:
            return Verdict(text, "c4.min_sentences", f"{sentences} < {rules.min_sentences}")
        return Verdict("\n".join(kept), None, "")


def _words(line: str) -> int:
    return int(Counted([line]).total()[0])


def _has_long(line: str, most: int) -> bool:
    """Whether a word of a script with spaces has more than so many characters."""
    counted = Counted([line])
    return bool((counted.words.lengths[counted.spaced] > most).any())
