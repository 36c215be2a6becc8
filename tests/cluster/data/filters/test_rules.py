"""Each rule passes a document just within its threshold and removes the one just beyond."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from cluster.data.filters import gopher, registry
from cluster.data.filters.c4 import C4Thresholds
from cluster.data.filters.code import CodeThresholds
from cluster.data.filters.contract import Verdict
from cluster.data.filters.fineweb import FineWebThresholds
from cluster.data.filters.gopher import GopherQualityThresholds, GopherRepetitionThresholds
from cluster.data.filters.registry import Thresholds
from cluster.data.filters.words import SOLID, Words

THRESHOLDS = Thresholds()


def judge(texts: list[str], names: tuple[str, ...], thresholds: Thresholds) -> list[Verdict]:
    return registry.judge(texts, registry.filters(names, thresholds))


CLEAN = ["the", "cat", "and", "dog", "with", "their", "good", "friends", "to", "rest", "under", "that", "tree"]


def prose(words: int, seed: int = 0) -> list[str]:
    """Words that pass every Gopher rule: stop words, letters, and no repetition."""
    rng = random.Random(seed)
    return ["the", "and"][:words] + [
        word if i % 7 == 0 else "".join(rng.choice("abcdefghijklm") for _ in range(rng.randint(3, 8)))
        for i, word in ((i, rng.choice(CLEAN)) for i in range(words - 2))
    ]


def reason(text: str, *sets: str, **thresholds) -> str | None:
    return judge([text], sets, Thresholds(**thresholds) if thresholds else THRESHOLDS)[0].reason


def test_clean_text_passes_everything():
    text = " ".join(prose(200)) + "."
    assert reason(text, "gopher", "fineweb") is None


GOLDEN = {
    "min_words": (" ".join(prose(50)), " ".join(prose(49))),
    "max_words": (" ".join(prose(100_000)), " ".join(prose(100_001))),
    "min_mean_word_length": ("the and " * 20 + "abc " * 40, "the and " * 20 + "abc " * 39 + "ab"),
    "max_mean_word_length": (
        "to the " * 25 + "x" * 17 + " " + "abcdefghijklmnopq " * 49,
        "to the " * 25 + "abcdefghijklmnopqr " * 50,
    ),
    "max_hash_to_words": (" ".join([*prose(100), "#" * 10][:101]), " ".join(prose(100)) + "#" * 11),
    "max_ellipsis_to_words": ("... … " * 5 + " ".join(prose(95)), " ".join(prose(100)) + "…" * 11),
    "max_bullet_lines": (
        "\n".join(["- " + " ".join(prose(20, i)) for i in range(9)] + [" ".join(prose(20, 99))]),
        "\n".join("* " + " ".join(prose(20, i)) for i in range(10)),
    ),
    "max_ellipsis_lines": (
        "\n".join(" ".join(prose(20, i)) + ("…" if i < 3 else "") for i in range(10)),
        "\n".join(" ".join(prose(20, i)) + ("..." if i < 4 else "") for i in range(10)),
    ),
    "min_words_with_letter": (
        " ".join(prose(80) + [f"{i}:{i}" for i in range(100, 120)]),
        " ".join(prose(79) + [f"{i}:{i}" for i in range(100, 121)]),
    ),
    "min_stop_words": ("the of " + "abcd " * 60, "the The " + "abcd " * 60),
}


@pytest.mark.parametrize("rule", GOLDEN)
def test_gopher_quality_at_its_thresholds(rule):
    within, beyond = GOLDEN[rule]
    assert reason(within, "gopher_quality") is None
    assert reason(beyond, "gopher_quality") == f"gopher_quality.{rule}"


def test_every_gopher_quality_rule_has_a_golden_document():
    assert GOLDEN.keys() == GopherQualityThresholds.model_fields.keys()


def line(i: int) -> str:
    return " ".join(prose(12, seed=i))


def lines(total: int, copies: int, joiner: str) -> str:
    """`total` lines, of which `copies` repeat the first, which is short: so the characters stay few."""
    first = "ab cd"
    return joiner.join([first] + [line(i) for i in range(total - copies - 1)] + [first] * copies)


REPETITION = {
    "max_duplicate_lines": (lines(10, 3, "\n"), lines(10, 4, "\n")),
    "max_duplicate_paragraphs": (lines(10, 3, "\n\n"), lines(10, 4, "\n\n")),
}


@pytest.mark.parametrize("rule", REPETITION)
def test_repeated_lines_and_paragraphs_at_their_thresholds(rule):
    within, beyond = REPETITION[rule]
    assert reason(within, "gopher_repetition") is None
    assert reason(beyond, "gopher_repetition") == f"gopher_repetition.{rule}"


# datatrove's counting, written down once more and plainly (src/datatrove/pipeline/filters/gopher_repetition_filter.py)


def top_chars(words: list[str], n: int) -> int:
    counts = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    if not counts:
        return 0
    ngram, count = counts.most_common(1)[0]
    return len(ngram) * count if count > 1 else 0


def duplicate_chars(words: list[str], n: int) -> int:
    seen, chars, i = set(), 0, 0
    while i < len(words) - n + 1:
        ngram = "".join(words[i : i + n])
        if ngram in seen:
            chars += len(ngram)
            i += n
        else:
            seen.add(ngram)
            i += 1
    return chars


def repetitive(seed: int) -> str:
    rng = random.Random(seed)
    vocabulary = [f"{'é' if i % 9 == 0 else 'w'}{i}" for i in range(rng.choice([5, 20, 80, 400]))]
    words = [rng.choice(vocabulary) for _ in range(rng.randint(3, 300))]
    for _ in range(rng.randint(0, 6)):  # repeat a run of words somewhere
        a, size = rng.randrange(len(words)), rng.randint(2, 14)
        at = rng.randrange(len(words))
        words[at:at] = words[a : a + size]
    return " ".join(words)


@pytest.mark.parametrize("n", range(2, 11))
def test_ngram_rules_count_exactly_as_the_reference(n):
    texts = [repetitive(seed) for seed in range(150)]
    top = n <= 4
    count = top_chars if top else duplicate_chars
    shares = [count(text.split(), n) / len(text) for text in texts]
    field, other = ("max_top_ngram_chars", "max_duplicate_ngram_chars")[:: 1 if top else -1]
    off = dict.fromkeys(
        [
            "max_duplicate_lines", "max_duplicate_paragraphs",
            "max_duplicate_line_chars", "max_duplicate_paragraph_chars",
        ],
        1.0,
    )  # fmt: skip
    for bound in (0.0, 0.05, 0.15, 0.4):
        rules = GopherRepetitionThresholds(**{field: {n: bound}, other: {}}, **off)
        verdicts = judge(texts, ("gopher_repetition",), Thresholds(gopher_repetition=rules))
        assert [verdict.reason is not None for verdict in verdicts] == [share > bound for share in shares]
        for verdict, share in zip(verdicts, shares, strict=True):
            if verdict.reason:
                assert verdict.detail == f"{share:.4g} > {bound:g}"


def test_a_verdict_does_not_depend_on_the_documents_beside_it():
    texts = [repetitive(seed) for seed in range(60)] + [" ".join(prose(300, seed)) for seed in range(20)]
    alone = [judge([text], ("gopher",), THRESHOLDS)[0] for text in texts]
    assert judge(texts, ("gopher",), THRESHOLDS) == alone
    assert {verdict.reason for verdict in alone} >= {None, "gopher_quality.min_words"}


FINEWEB = {
    "min_punctuated_lines": (
        "\n".join(line(i) + ("." if i < 3 else "") for i in range(25)),
        "\n".join(line(i) + ("." if i < 2 else "") for i in range(17)),
    ),
    "max_short_lines": (
        "\n".join([line(i) + line(i + 99) + "." for i in range(33)] + [f"ab{i} cd{i} ef{i} gh{i}" for i in range(67)]),
        "\n".join([line(i) + line(i + 99) + "." for i in range(32)] + [f"ab{i} cd{i} ef{i} gh{i}" for i in range(68)]),
    ),
    "max_duplicate_line_chars": (
        "\n".join([line(i) + "." for i in range(300)] + [line(1) + "."]),
        "\n".join([line(i) + "." for i in range(50)] + [line(1) + "."]),
    ),
    "max_newlines_to_words": (
        "\n".join(["x" * 31 + f"{i} a b c." for i in range(100)]),
        "\n".join("x" * 31 + f"{i}." for i in range(99)),
    ),
}


@pytest.mark.parametrize("rule", FINEWEB)
def test_fineweb_at_its_thresholds(rule):
    within, beyond = FINEWEB[rule]
    assert reason(within, "fineweb") is None
    assert reason(beyond, "fineweb") == f"fineweb.{rule}"


def test_every_fineweb_rule_has_a_golden_document():
    assert FINEWEB.keys() == FineWebThresholds.model_fields.keys() - {"short_line"}


BODY = "def f(x):\n    return x\n\n\nprint(f(1))\n"
CODE = {
    "max_line_length": (BODY * 20 + "#" + "x" * 999, BODY * 20 + "#" + "x" * 1000),
    "max_mean_line_length": (
        "x" * 100 + "\n" + "y" * 100 + "\n" + "z" * 100,
        "x" * 100 + "\n" + "y" * 100 + "\n" + "z" * 101,
    ),
    "min_alphabetic": ("a" * 25 + "\n1\n" + "1" * 72, "a" * 24 + "\n1\n" + "1" * 73),
    "min_lines": ("x = one\ny = two\nz = three\n", "x = one\ny = two\n"),
    "generated": (BODY, "# This file was auto-generated.\n" + BODY),
}


@pytest.mark.parametrize("rule", CODE)
def test_code_at_its_thresholds(rule):
    within, beyond = CODE[rule]
    assert reason(within, "code") is None
    assert reason(beyond, "code") == f"code.{rule}"


def test_generated_code_is_kept_where_it_is_allowed():
    assert reason(CODE["generated"][1], "code", code=CodeThresholds(allow_generated=True)) is None


SENTENCES = "This is one good line of text. It has a second sentence.\n" * 2 + "Here is the fifth one of them.\n"


def test_c4_drops_lines_and_counts_sentences():
    text = (
        SENTENCES + "No end mark here at all\nToo short.\nEnable JavaScript now please.\nWe use cookies on this page.\n"
    )
    verdict = judge([text + "It was shown [12] by them [edit].\n"], ("c4",), THRESHOLDS)[0]
    assert verdict.reason is None
    assert verdict.text == SENTENCES + "It was shown  by them ."
    assert reason(SENTENCES, "c4") is None  # five
    assert reason(SENTENCES.replace(" It has a second sentence.", "", 1), "c4") == "c4.min_sentences"
    loose = judge([text], ("c4",), Thresholds(c4=C4Thresholds(require_end_punctuation=False)))[0].text
    assert "No end mark here at all" in loose


@pytest.mark.parametrize("bad,rule", [("a { b }.", "no_braces"), ("Lorem Ipsum dolor.", "no_lorem_ipsum")])
def test_c4_drops_documents(bad, rule):
    assert reason(SENTENCES + bad, "c4") == f"c4.{rule}"


def test_sets_run_in_their_order_on_what_the_ones_before_left():
    """C4 takes a text's lines away; what is left has too few words for Gopher."""
    text = "\n".join([SENTENCES, *(" ".join(prose(30, i)) for i in range(9))])
    assert reason(text, "gopher_quality") is None
    assert reason(text, "c4", "gopher_quality") == "gopher_quality.min_words"


def test_thresholds_can_be_set():
    assert reason("the cat and dog", "gopher_quality", gopher_quality=GopherQualityThresholds(min_words=4)) is None


@pytest.mark.parametrize("text", ["", " ", "\n\n\n", "...", "###", "x", "é", "你好", "\ud83d"])
def test_no_text_breaks_a_rule(text):
    assert reason(text, "gopher", "fineweb", "c4", "code") is not None
    judge([text, "x y z"], ("code", "fineweb", "gopher_repetition", "gopher_quality"), THRESHOLDS)


@pytest.mark.parametrize("text", ["", "\n", "a", "a\nb\n\nc", "\n\n\na\n\n\n\n\nb\n\n\nc\n", "a\n\n\nb\n \n\nc"])
def test_paragraphs_and_lines_are_those_of_the_reference(text):
    assert gopher._paragraphs(text) == re.split(r"\n{2,}", text.strip())
    assert gopher._lines(text) == re.split(r"\n+", text.strip())


def test_ngram_rules_do_not_depend_on_the_order_in_which_they_are_asked():
    texts = [repetitive(seed) for seed in range(80)]
    ngrams, backwards = (gopher._Ngrams(Words(texts, SOLID)) for _ in range(2))
    forth = {n: (ngrams.top_chars(n).tolist(), ngrams.repeated_chars(n).tolist()) for n in range(2, 11)}
    back = {n: (backwards.top_chars(n).tolist(), backwards.repeated_chars(n).tolist()) for n in range(10, 1, -1)}
    assert forth == back
