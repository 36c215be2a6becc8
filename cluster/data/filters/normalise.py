"""Unicode repair and normalisation: one way of writing what reads the same, and nothing that can't be seen.

    text   line ends → \\n; terminal escapes and control characters out; mojibake repaired where it is certain
           (ftfy: "schÃ¶n" → "schön"); canonical composition (NFC)
    code   line ends and control characters only: a program's string literals are its own business

ftfy: Speer 2019, https://ftfy.readthedocs.io. NFC: Unicode Standard Annex 15.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Literal

Normalisation = Literal["text", "code", "none"]

_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
_ESCAPES = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]")
_INVISIBLE = re.compile("[\ufeff\ufff9-\ufffb]")
_CONTROL = bytes(b for b in range(32) if b not in b"\t\n") + b"\x7f"
_FEEDS = bytes.maketrans(b"\x0b\x0c", b"\n\n")
_CONTROL_BUT_FEEDS = _CONTROL.translate(None, b"\x0b\x0c")


def normalise(text: str, kind: Normalisation) -> str:
    """The text in its normal form; `normalise(normalise(x)) == normalise(x)`."""
    if kind == "none":
        return text
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if kind == "code":
        return _INVISIBLE.sub("", _without(text, None, _CONTROL))
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    text = _without(text, _FEEDS, _CONTROL_BUT_FEEDS)
    if text.isascii():
        return text
    text, fix = _LINE_ENDS.sub("\n", text), _fixer()
    # line by line: few lines have something to repair, and ftfy is the slow part
    return "\n".join([line if line.isascii() else fix(line) for line in text.split("\n")])


def _without(text: str, table: bytes | None, deleted: bytes) -> str:
    """Control characters deleted: in UTF-8 they are single bytes, and bytes.translate is fast."""
    return text.encode("utf-8", "surrogatepass").translate(table, deleted).decode("utf-8", "surrogatepass")


@cache
def _fixer() -> Callable[[str], str]:
    import unicodedata

    import ftfy

    config = ftfy.TextFixerConfig(
        unescape_html=False,  # "&lt;" in a text about HTML is meant
        uncurl_quotes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        fix_line_breaks=False,
        normalization="NFC",
        explain=False,
    )

    def fix(line: str) -> str:
        # a line is repaired as a whole; unless something looks wrong, composition is all there is to do
        line = _INVISIBLE.sub("", line)
        if not ftfy.is_bad(line) and not _SUSPICIOUS.search(line):
            return unicodedata.normalize("NFC", line)
        return _INVISIBLE.sub("", _without(ftfy.fix_text(line, config).replace("\n", " "), None, _CONTROL))

    return fix


_SUSPICIOUS = re.compile("[\x80-\x9f\ud800-\udfff\u00ad\u200e\u200f\u202a-\u202e\u2060-\u206f\U000e0000-\U000e007f]")
