"""Typography folded away: what reads the same is written the same, for rules that count and for comparing texts.

    “No” – he said…   →   "No" - he said.        spaces, quotes, dashes and other signs by Unicode's classes; digits of
                                                 all scripts; what can't be seen (soft hyphens, joiners) is left out

After it a byte of a character beyond ASCII is one of a letter. A letter stays a letter and a sign one sign, so lengths
are those of what is seen. ASCII text is its own fold. Texts themselves are never changed: documents stay as they are.
"""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

GONE = 0xFFFFFFFF  # in a table: the character is left out
HALF, QUARTER = 0xE000, 0x100000  # for a letter of a script without spaces: of about so much of a word
HALF_LEAD, QUARTER_LEAD = 0xEE, 0xF4  # their first bytes in UTF-8, which no other folded character has

# What ends a sentence, beyond ASCII: Unicode's Sentence_Terminal, of the scripts that are written today
ENDS = "。｡．！？؟۔।॥։။།༎።፧፨។៕᠃"

_SIGNS = {
    "'": "‘’‚‛′‵ʼ‹›`´＇",
    '"': "“”„‟″‶«»＂〝〞〟",
    ".": "…‥၊" + ENDS.translate({ord(c): None for c in "！？؟፧"}),
    ",": "，、､،",
    "!": "！¡",
    "?": "？¿؟",
    ":": "：",
    ";": "；",
    "-": "−",
}
# Chinese and kana: a word has about two letters
_HALF = (
    (0x3005, 0x3008), (0x3031, 0x3036), (0x3041, 0x3130), (0x31A0, 0x31C0), (0x31F0, 0x3200), (0x3400, 0x4DC0),
    (0x4E00, 0xA000), (0xF900, 0xFB00), (0xFF66, 0xFFA0), (0x1B000, 0x1B170), (0x20000, 0x40000),
)  # fmt: skip
# Thai, Lao, Tibetan, Burmese, Khmer, Tai, Javanese, Balinese: about four, vowel signs included
_QUARTER = (
    (0x0E00, 0x1000), (0x1000, 0x10A0), (0x1780, 0x1800), (0x1950, 0x19E0), (0x1A20, 0x1AB0), (0x1B00, 0x1B80),
    (0xA980, 0xAA00), (0xAA60, 0xAAE0),
)  # fmt: skip


def fold(text: str) -> str:
    """The text with its typography folded away."""
    return text if text.isascii() else _translate(text, _folded())


def measured(text: str) -> str:
    """As `fold`, with each letter of a script without spaces as HALF or QUARTER: see words.word_counts."""
    return text if text.isascii() else _translate(text, _measured())


def compared(text: str) -> str:
    """The text as it is compared with others: folded, in lower case, and NFKC (ligatures, width)."""
    if text.isascii():
        return text.lower()
    return _translate(unicodedata.normalize("NFKC", text).lower(), _folded())


def _translate(text: str, table: NDArray[np.uint32]) -> str:
    points = table[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")]
    return points[points != GONE].astype("<u4").tobytes().decode("utf-32-le")


@cache
def _folded() -> NDArray[np.uint32]:
    """(0x110000,) what each code point becomes."""
    table = np.arange(0x110000, dtype=np.uint32)
    for point in range(0x80, 0x20000):  # beyond it are ideographs, and what is treated below
        table[point] = _folded_point(point)
    table[0xD800:0xE000] = ord("?")
    table[0xE000:0xF900] = table[0x40000:0xE0000] = table[0xF0000:] = ord("~")  # private use, unassigned
    table[0xE0000:0xF0000] = GONE  # tags, variation selectors
    for sign, others in _SIGNS.items():
        for other in others:
            table[ord(other)] = ord(sign)
    return table


def _folded_point(point: int) -> int:
    character = chr(point)
    kind = unicodedata.category(character)
    if character.isspace():
        return ord("\n" if character in "\x85\u2028\u2029" else " ")
    if kind in ("Cc", "Cf") or 0xFE00 <= point <= 0xFE0F:  # the latter choose a variant of a sign
        return GONE
    if 0xFF01 <= point <= 0xFF5E and kind[0] in "PS":  # ASCII in full width
        return point - 0xFEE0
    if kind[0] == "N" and point not in (0x3007, 0x3021):
        return ord("0") + unicodedata.digit(character, 0)
    if kind[0] in "PS":
        return ord({"Pd": "-", "Pc": "_", "Ps": "(", "Pe": ")", "Pi": '"', "Pf": '"', "Po": ","}.get(kind, "~"))
    return ord("~") if kind == "Cn" else point


@cache
def _measured() -> NDArray[np.uint32]:
    table = _folded().copy()
    own = table == np.arange(len(table))  # letters and marks
    for ranges, mark in ((_HALF, HALF), (_QUARTER, QUARTER)):
        for first, stop in ranges:
            table[first:stop][own[first:stop]] = mark
    return table
