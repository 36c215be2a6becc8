"""Held out by a hash: what is kept apart is decided by a text alone.

    hash(text, salt) < share · 2^64

The same text is on one side wherever it lies: in every copy, source, run and process, whatever else is there. Each use
has a salt of its own, so that what one use holds out says nothing of another's.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from typing import Any


def text_hash(text: str | bytes, salt: str) -> int:
    """A 64-bit hash of a text, uniform and the same in every process."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=salt.encode()).digest(), "little")


def question(example: Mapping[str, Any]) -> str:
    """The identity of what an example asks: who says what up to the answer, and nothing else.

    The order of keys, further keys, a system message, `prompt` for a user's message, and white space are no part of it.
    """
    messages = example.get("messages", [{"role": "user", "content": example.get("prompt")}])
    turns = [
        {"role": turn["role"], "content": unicodedata.normalize("NFC", " ".join(str(turn["content"]).split()))}
        for turn in messages
        if turn["role"] != "system"
    ]
    return json.dumps(turns)


def threshold(share: float) -> float:
    """The hash below which a text belongs to the share: of all hashes as many lie below it."""
    return share * 2.0**64


def below(text: str | bytes, salt: str, share: float) -> bool:
    """Whether a text is in a share of all texts, in [0, 1]; a larger share holds all of a smaller one's."""
    return text_hash(text, salt) < threshold(share)


def one_in(count: int, text: str | bytes, salt: str) -> bool:
    """Whether a text is among one in `count` of all texts."""
    return text_hash(text, salt) % count == 0
