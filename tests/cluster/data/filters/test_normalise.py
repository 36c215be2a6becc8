"""Text is written in one way; what is meant, above all code, stays as it is."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.data.filters.normalise import normalise

PIECES = [
    "schÃ¶n",
    "schön",
    "â€œquotedâ€\x9d",
    "“quoted”",
    "e\u0301",
    "é",
    "\r\n",
    "\r",
    "\n",
    "\x00",
    "\x1b[31mred\x1b[0m",
]
PIECES += [
    "\u200b",
    "\ufeff",
    "\u00ad",
    "a b",
    "&lt;",
    "ﬁ",
    "１２",
    "…",
    "\u2028",
    "\x85",
    "你好",
    "\U0001f600",
    "\t",
    "Ã",
    "\xa0",
]


@pytest.mark.parametrize(
    "text,expected",
    [
        ("a\r\nb\rc\u2028d\x0ce", "a\nb\nc\nd\ne"),
        ("nul\x00 bell\x07 del\x7f \ufeffmark", "nul bell del mark"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("Das ist schÃ¶n, âœ” wirklich", "Das ist schön, ✔ wirklich"),
        ("cafe\u0301", "café"),
        ("“curly” ‘quotes’ — ﬁne １２ &lt;b&gt; &amp;", "“curly” ‘quotes’ — ﬁne １２ &lt;b&gt; &amp;"),
        ("tabs\tand  spaces \n\n\n stay", "tabs\tand  spaces \n\n\n stay"),
        ("plain text", "plain text"),
    ],
)
def test_text_is_repaired_and_nothing_else(text, expected):
    assert normalise(text, "text") == expected


def test_repair_of_one_line_leaves_the_others():
    assert normalise("# schÃ¶n\ncafe\u0301 “x”\nascii", "text") == "# schön\ncafé “x”\nascii"


def test_code_keeps_its_strings():
    code = 's = "schÃ¶n e\u0301 \u2028 \\x00"\r\nif x:\r\n\treturn “y”\x00\x0c\n'
    assert normalise(code, "code") == 's = "schÃ¶n e\u0301 \u2028 \\x00"\nif x:\n\treturn “y”\n'


def test_none_changes_nothing():
    assert normalise("a\r\n\x00e\u0301", "none") == "a\r\n\x00e\u0301"


@settings(max_examples=300)
@given(
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=12).map("".join),
    st.sampled_from(["text", "code"]),
)
def test_normal_form_is_normal(text, kind):
    once = normalise(text, kind)
    assert normalise(once, kind) == once
    assert "\r" not in once and "\x00" not in once
    if kind == "text":
        assert unicodedata.is_normalized("NFC", once)
