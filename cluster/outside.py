"""Text from outside on a page: what a model, a file or a stranger wrote is shown as text, and does nothing.

visible       ESC [ 3 1 m, a bidi override        ──▶ \\x1b[31m, \\u202e: written out, as Python does
plain         the same, and no secrets             a terminal, a log, a cell, a figure's label
in_markdown   [x](javascript:…), <img …>, | # *   ──▶ one line that shows just these characters

No page of ours is HTML; what is Markdown is Prefect's artifacts and MLflow's descriptions.
"""

from __future__ import annotations

import re

from cluster.masking import masked

# C0 but tab and line feed, DEL, C1; separators of lines; the marks that turn the direction of a text or hide in it
# (Trojan Source, CVE-2021-42574), and tags, which no page shows; halves of surrogate pairs, which no encoder takes.
# Marks of ordinary writing (LRM, RLM, joiners, variation selectors) stay.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u180e\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
# What begins emphasis, code, a link, HTML, a table's cell, a strike or a heading; at a line's start also a list; and
# what pages make links of by themselves: CommonMark 0.31 and GitHub's, as marked and showdown read them.
_MARKUP = re.compile(r"[\\`*_\[\]|~#<>&@]|:(?=//)|(?<=www)\.|(?<=\d)[.)](?=\s|$)|^[-+=]", re.IGNORECASE)
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}


def visible(text: str) -> str:
    """The text with what can't be seen, or would steer a terminal, written out; CR LF is one line break."""
    return _INVISIBLE.sub(_written_out, text.replace("\r\n", "\n"))


def plain(text: str) -> str:
    """Text where what is written is what is shown: a terminal, a log file, a table's cell, a figure's label."""
    return masked(visible(text))


def in_markdown(text: object) -> str:
    """One line of Markdown that shows just this text."""
    line = " ".join(masked(visible(str(text))).split())
    return _MARKUP.sub(lambda found: _NAMED.get(found[0]) or f"\\{found[0]}", line)


def _written_out(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
