"""What a model, a file or a stranger wrote is shown as text, and does nothing."""

from __future__ import annotations

import html
import unicodedata
from xml.dom import minidom

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from cluster.outside import in_markdown, plain, visible
from cluster.tracking.figures import svg

STEERING = [
    *map(chr, range(0x09)), *map(chr, range(0x0B, 0x20)), *map(chr, range(0x7F, 0xA0)),
    *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\u2028", "\u2029", "\udc80", "\U000e0041",
]  # fmt: skip
WRITING = ["Grüße", "日本語", "שלום\u200f", "نص\u200cها", "👩\u200d👧", "❤\ufe0f", "a\tb\nc", "x\u00a0y", "e\u0301"]


@pytest.mark.parametrize("character", STEERING)
def test_what_can_steer_a_terminal_is_written_out(character: str) -> None:
    shown = visible(f"a{character}b")
    assert shown == f"a{character.encode('unicode_escape').decode()}b"
    assert shown.isascii()


@pytest.mark.parametrize("text", WRITING)
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


@given(st.text())
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    left = [c for c in visible(text) if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t"]
    assert left == []
    assert visible(visible(text)) == visible(text)


pieces = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from([
            "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "![x](http://a.b)",
            "<http://a.b>", "[a]: http://a.b", "`", "```", "|", "# ", "- ", "1. ", "> ", "    ", "\n", "\n\n", "---",
            "**", "__", "~~", "&lt;", "&#106;", "\\", "\\|", "http://a.b", "www.a.b", "a@b.cd", "\t", "<!--", "$$",
        ]),
    ),
    max_size=8,
).map("".join)  # fmt: skip


@given(pieces)
@example("1. 2) -+=")
def test_markdown_of_any_text_shows_just_the_text(text: str) -> None:
    """As a paragraph, and in a table's cell: no other element is made, and the characters are the same."""
    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    line = " ".join(plain(text).split())
    shown = page.render(in_markdown(text))
    assert html.unescape(shown.strip()) == (f"<p>{line}</p>" if line else "")
    table = page.render(f"| a | b |\n|---|---|\n| {in_markdown(text)} | z |")
    cell = table.partition("<tbody>")[2].partition("<td>")[2].partition("</td>")[0]
    assert html.unescape(cell) == line
    assert "<td>z</td>" in table


@pytest.mark.parametrize("label", ["a$b$c", r"$\frac$", "<script>alert(1)</script>", "\x1b[31m", "]]>&amp;", "\x00"])
def test_a_figures_labels_are_text(label: str) -> None:
    spec = {"title": label, "x_label": label, "y_label": label, "series": [{"name": label, "x": [1, 2], "y": [3, 4]}]}
    texts = [e.firstChild.nodeValue for e in minidom.parseString(svg(spec)).getElementsByTagName("text")]
    assert texts.count(visible(label)) == 4
