"""The bytes that each token stands for, for what has to know which text a token would write (a grammar's mask).

sentencepiece   "▁the" -> b" the"      "<0x0A>" -> b"\\n"      <s> -> None, as every token that writes nothing
byte-level      "Ġthe" -> b" the"      each character stands for a byte (Radford et al. 2019, GPT-2's table)
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from cluster.errors import UserError

SPACE_MARK = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def sentencepiece_bytes(processor: Any, i: int) -> bytes | None:
    """Of one token of a sentencepiece model; None for a control symbol and the unknown one."""
    if processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i):
        return None
    return spaced_bytes(processor.id_to_piece(i))


def spaced_bytes(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE_MARK, " ").encode()


def tokenizers_bytes(tokenizer: Any) -> dict[int, bytes | None]:
    """Of each token of a `tokenizers.Tokenizer`. UserError for one whose tokens are joined by other rules."""
    decoder = json.dumps(json.loads(tokenizer.to_str()).get("decoder"))
    level = "ByteLevel" in decoder
    if not level and not any(name in decoder for name in ("Metaspace", "ByteFallback", SPACE_MARK, "u2581")):
        raise UserError("This tokenizer's tokens (WordPiece, or with marks at words' ends) have no bytes of their own.")
    found: dict[int, bytes | None] = {}
    for piece, i in tokenizer.get_vocab(with_added_tokens=False).items():
        known = level and all(char in byte_of_character() for char in piece)
        found[i] = bytes(byte_of_character()[char] for char in piece) if known else spaced_bytes(piece)
    for i, added in tokenizer.get_added_tokens_decoder().items():
        found[i] = None if added.special else added.content.encode()
    return found


@cache
def byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes are their own character, the others come after the 255th in their order."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + n): byte for n, byte in enumerate(others)}
