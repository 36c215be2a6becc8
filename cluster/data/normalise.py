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

_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CODE_LINE_ENDS = re.compile("\r\n?")
_ESCAPES = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\ufff9-\ufffb]")
_BEYOND_ASCII = re.compile("[^\n]*[^\x00-\x7f][^\n]*")


def normalise(text: str, kind: Normalisation) -> str:
    """The text in its normal form; `normalise(normalise(x)) == normalise(x)`."""
    if kind == "none":
        return text
    if kind == "code":
        return _CONTROL.sub("", _CODE_LINE_ENDS.sub("\n", text))
    text = _LINE_ENDS.sub("\n", text)
    text = _CONTROL.sub("", _ESCAPES.sub("", text))
    if not text.isascii():  # only the lines that have something to repair: ftfy is the slow part
        fix = _fixer()
        text = _BEYOND_ASCII.sub(lambda line: fix(line[0]), text)
    return text


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
        if not ftfy.is_bad(line) and not _SUSPICIOUS.search(line):
            return unicodedata.normalize("NFC", line)
        return _CONTROL.sub("", ftfy.fix_text(line, config).replace("\n", " "))

    return fix


_SUSPICIOUS = re.compile("[\x80-\x9f\ud800-\udfff\u00ad\u200e\u200f\u202a-\u202e\u2060-\u206f\U000e0000-\U000e007f]")
