"""Quality rules: published ones, by name, each with a reason and the value that failed it.

    judge(texts, ("gopher",), Thresholds()) → [(text, None, "") or (text, "gopher_quality.min_words", "12 < 50"), …]

A document gets the first rule that it fails, in the order below. Words are what stands between white space, as in
the paper and in Dolma; datatrove, whose counting of repetition is followed otherwise, splits punctuation off.
Thresholds: rules.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.data.filters.rules import C4, Code, FineWeb, GopherQuality, GopherRepetition, RuleSet, Thresholds
from cluster.data.filters.words import ALNUM, LETTER, SOLID, Words, batches

Values = NDArray[np.float64]


class Verdict(NamedTuple):
    text: str  # with the lines removed that a line rule drops
    reason: str | None  # set.rule, or None: it passes
    detail: str  # the value and the bound


class Check(NamedTuple):
    """One rule over n documents: they fail where `values` lies beyond `bound`."""

    rule: str
    values: NDArray
    bound: float
    lowest: bool  # the bound is a minimum


def judge(texts: list[str], sets: tuple[RuleSet, ...], thresholds: Thresholds) -> list[Verdict]:
    """A verdict for each text, by the named rule sets in their order."""
    verdicts = [Verdict(text, None, "") for text in texts]
    for name in dict.fromkeys(part for one in sets for part in _parts(one)):
        for group in batches(texts):
            rows = [i for i in range(*group.indices(len(texts))) if verdicts[i].reason is None]
            if not rows:
                continue
            if name == "c4":
                for i in rows:
                    verdicts[i] = _c4(verdicts[i].text, thresholds.c4)
                continue
            for check in _CHECKS[name]([verdicts[i].text for i in rows], getattr(thresholds, name)):
                failed = check.values < check.bound if check.lowest else check.values > check.bound
                for place in np.flatnonzero(failed):
                    verdict = verdicts[rows[place]]
                    if verdict.reason is None:
                        sign = "<" if check.lowest else ">"
                        detail = f"{check.values[place]:.4g} {sign} {check.bound:g}"
                        verdicts[rows[place]] = Verdict(verdict.text, f"{name}.{check.rule}", detail)
    return verdicts


def _parts(name: str) -> tuple[str, ...]:
    return ("gopher_quality", "gopher_repetition") if name == "gopher" else (name,)


def _array(values: Iterator[float] | list[float]) -> Values:
    return np.array(list(values), np.float64)


def _share(part: NDArray, whole: NDArray) -> Values:
    return part / np.maximum(whole, 1)


# ── Gopher ──────────────────────────────────────────────────────────────────────────────────────────────

_BULLETS = ("-", "*", "•", "‣", "▶", "◀", "◦", "■", "□", "▪", "▫", "–")
_STOP_WORDS = re.compile(r"\b(?:the|be|to|of|and|that|have|with)\b", re.IGNORECASE)


def _gopher_quality(texts: list[str], rules: GopherQuality) -> Iterator[Check]:
    words = Words(texts, SOLID)
    real = words.count(ALNUM) > 0
    n_real = _per_document(words, real)
    yield Check("min_words", n_real, rules.min_words, True)
    yield Check("max_words", n_real, rules.max_words, False)
    length = _share(_per_document(words, np.where(real, words.lengths, 0)), n_real)
    yield Check("min_mean_word_length", length, rules.min_mean_word_length, True)
    yield Check("max_mean_word_length", length, rules.max_mean_word_length, False)
    hashes = _array([text.count("#") for text in texts])
    yield Check("max_hash_to_words", _share(hashes, words.counts), rules.max_hash_to_words, False)
    ellipses = _array([text.count("...") + text.count("…") for text in texts])
    yield Check("max_ellipsis_to_words", _share(ellipses, words.counts), rules.max_ellipsis_to_words, False)
    lines = [[line for line in text.split("\n") if line and not line.isspace()] for text in texts]
    count = _array([len(one) for one in lines])
    bullets = _array([sum(line.lstrip().startswith(_BULLETS) for line in one) for one in lines])
    yield Check("max_bullet_lines", _share(bullets, count), rules.max_bullet_lines, False)
    ends = _array([sum(line.rstrip().endswith(("...", "…")) for line in one) for one in lines])
    yield Check("max_ellipsis_lines", _share(ends, count), rules.max_ellipsis_lines, False)
    letters = _share(_per_document(words, words.count(LETTER) > 0), words.counts)
    yield Check("min_words_with_letter", letters, rules.min_words_with_letter, True)
    stop = _array([_stop_words(text, rules.min_stop_words) for text in texts])
    yield Check("min_stop_words", stop, rules.min_stop_words, True)


def _per_document(words: Words, values: NDArray) -> NDArray[np.int64]:
    total = np.zeros(len(words) + 1, np.int64)
    np.cumsum(values, out=total[1:])
    return total[words.first[1:]] - total[words.first[:-1]]


def _stop_words(text: str, enough: int) -> int:
    found: set[str] = set()
    for match in _STOP_WORDS.finditer(text):
        found.add(match[0].lower())
        if len(found) >= enough:
            break
    return len(found)


def _gopher_repetition(texts: list[str], rules: GopherRepetition) -> Iterator[Check]:
    size = _array([len(text) for text in texts])
    paragraphs = [_repeats(_paragraphs(text)) for text in texts]
    share = _array([count / of for count, _, of in paragraphs])
    yield Check("max_duplicate_paragraphs", share, rules.max_duplicate_paragraphs, False)
    chars = _share(_array([chars for _, chars, _ in paragraphs]), size)
    yield Check("max_duplicate_paragraph_chars", chars, rules.max_duplicate_paragraph_chars, False)
    lines = [_repeats(_lines(text)) for text in texts]
    share = _array([count / of for count, _, of in lines])
    yield Check("max_duplicate_lines", share, rules.max_duplicate_lines, False)
    chars = _share(_array([chars for _, chars, _ in lines]), size)
    yield Check("max_duplicate_line_chars", chars, rules.max_duplicate_line_chars, False)
    ngrams = _Ngrams(Words(texts, SOLID))
    for n, bound in rules.max_top_ngram_chars.items():
        yield Check(f"max_top_{n}gram_chars", _share(ngrams.top_chars(n), size), bound, False)
    for n, bound in rules.max_duplicate_ngram_chars.items():
        yield Check(f"max_duplicate_{n}gram_chars", _share(ngrams.repeated_chars(n), size), bound, False)


def _paragraphs(text: str) -> list[str]:
    """Parts between blank lines, as re.split(r"\\n{2,}", text.strip()) has them."""
    return [part for piece in text.strip().split("\n\n") if (part := piece.lstrip("\n"))] or [""]


def _lines(text: str) -> list[str]:
    return [line for line in text.strip().split("\n") if line] or [""]


def _repeats(pieces: list[str]) -> tuple[int, int, int]:
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


class _Repeated(NamedTuple):
    """The n-grams that stand more than once in their document."""

    at: NDArray[np.int64]  # index of the first word of each copy, ascending
    group: NDArray[np.int64]  # which n-gram it is
    first: NDArray[np.int64]  # (groups,) where each stands first
    size: NDArray[np.int64]  # (groups,) how often


class _Ngrams:
    """Repetition of n-grams in a batch of documents. Only where an n-gram is repeated can a longer one be, so
    each length looks at what the next shorter one left: the sorting is done once, on the shortest."""

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
        Of several that are as common the first counts. One that occurs once is no repetition and counts 0."""
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


# ── FineWeb ─────────────────────────────────────────────────────────────────────────────────────────────

_END_MARKS = (".", "!", "?", "。", "！", "？", "؟", "۔", "।", "॥", "…")


def _fineweb(texts: list[str], rules: FineWeb) -> Iterator[Check]:
    lines = [[line for line in text.split("\n") if line and not line.isspace()] for text in texts]
    count = _array([len(one) for one in lines])
    ends = _array([sum(line.endswith(_END_MARKS) for line in one) for one in lines])
    yield Check("min_punctuated_lines", _share(ends, count), rules.min_punctuated_lines, True)
    short = _array([sum(len(line) <= rules.short_line for line in one) for one in lines])
    yield Check("max_short_lines", _share(short, count), rules.max_short_lines, False)
    newlines = _array([text.count("\n") for text in texts])
    size = _array([len(text) for text in texts]) - newlines
    again = _array([_repeats(one)[1] for one in lines])
    yield Check("max_duplicate_line_chars", _share(again, size), rules.max_duplicate_line_chars, False)
    words = _array([len(text.split()) for text in texts])
    yield Check("max_newlines_to_words", _share(newlines, words), rules.max_newlines_to_words, False)


# ── Code ────────────────────────────────────────────────────────────────────────────────────────────────

_GENERATED = re.compile(r"@generated|auto-?generated|automatically generated|do not edit", re.IGNORECASE)


def _code(texts: list[str], rules: Code) -> Iterator[Check]:
    lines = [text.rstrip("\n").split("\n") for text in texts]
    count = _array([len(one) for one in lines])
    yield Check("min_lines", count, rules.min_lines, True)
    longest = _array([max(map(len, one)) for one in lines])
    yield Check("max_line_length", longest, rules.max_line_length, False)
    mean = _share(_array([sum(map(len, one)) for one in lines]), count)
    yield Check("max_mean_line_length", mean, rules.max_mean_line_length, False)
    whole = Words(texts, SOLID)
    letters = _share(_per_document(whole, whole.count(LETTER)), np.diff(whole.offsets) - 1)
    yield Check("min_alphabetic", letters, rules.min_alphabetic, True)
    if not rules.allow_generated:
        said = _array([bool(_GENERATED.search(text[:2000])) for text in texts])
        yield Check("generated", said, 0, False)


# ── C4 ──────────────────────────────────────────────────────────────────────────────────────────────────

_C4_ENDS = (".", "?", "!", '"', "'")
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_SENTENCE = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)")


def _c4(text: str, rules: C4) -> Verdict:
    """Drop a text's bad lines, or the text."""
    low = text.lower()
    if rules.no_lorem_ipsum and "lorem ipsum" in low:
        return Verdict(text, "c4.no_lorem_ipsum", "")
    if rules.no_braces and "{" in text:
        return Verdict(text, "c4.no_braces", "")
    kept, sentences = [], 0
    for line in text.split("\n"):
        line = (_CITATION.sub("", line) if rules.remove_citations else line).strip()
        words, low = line.split(), line.lower()
        if (
            len(words) < rules.min_words_in_line
            or any(len(word) > rules.max_word_length for word in words)
            or (rules.require_end_punctuation and (not line.endswith(_C4_ENDS) or line.endswith("...")))
            or (rules.no_javascript and "javascript" in low)
            or (rules.no_policy and any(policy in low for policy in _POLICY))
        ):
            continue
        kept.append(line)
        sentences += max(len(_SENTENCE.findall(line)), 1)
    if sentences < rules.min_sentences:
        return Verdict(text, "c4.min_sentences", f"{sentences} < {rules.min_sentences}")
    return Verdict("\n".join(kept), None, "")


_CHECKS = {
    "gopher_quality": _gopher_quality,
    "gopher_repetition": _gopher_repetition,
    "fineweb": _fineweb,
    "code": _code,
}
