"""What classes of the reference loader put in the place of a tokenizer.json's own steps: Llama's and Gemma's.

They take the vocabulary and the merges alone from the file. How spaces become U+2581 is the class's own, whatever the
file says: files of before 2024 put one before each stretch of text.
"""

from __future__ import annotations

import json
from typing import Any

from cluster.data.tokenizer.whole_text import SPACE_MARK

SPACE = {"String": " "}


def as_its_class(model: bytes, about: dict[str, Any]) -> bytes:
    """A tokenizer.json with the steps of the class that tokenizer_config.json (`about`) names; else as it is."""
    name = str(about.get("tokenizer_class") or "")
    file = json.loads(model)
    pieces = file.get("model") if isinstance(file, dict) else None
    if not name.startswith(("Llama", "CodeLlama", "Gemma")) or not isinstance(pieces, dict):
        return model
    # One whose texts are bytes is another's under Llama's name (DeepSeek's), for which the loader has a list of models.
    if pieces.get("type") != "BPE" or "ByteLevel" in json.dumps([file.get("pre_tokenizer"), file.get("decoder")]):
        return model
    unknown = None if name.startswith("Llama") else pieces.get("unk_token")
    plain = {"dropout": None, "ignore_merges": False, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    pieces |= plain | {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True}
    return json.dumps(file | (_gemma() if name.startswith("Gemma") else _llama(name, about))).encode()


def _llama(name: str, about: dict[str, Any]) -> dict[str, Any]:
    prefix = about.get("add_prefix_space") is not False
    always = bool(about.get("legacy")) and name.startswith("Llama")
    scheme = ("always" if always else "first") if prefix else "never"
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix or name.startswith("Code") else []
    return {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": SPACE_MARK,
            "prepend_scheme": scheme,
            "split": False,
        },
        "decoder": {"type": "Sequence", "decoders": [*_joined(), *strip]},
    }


def _gemma() -> dict[str, Any]:
    return {
        "normalizer": {"type": "Replace", "pattern": SPACE, "content": SPACE_MARK},
        "pre_tokenizer": {"type": "Split", "pattern": SPACE, "behavior": "MergedWithPrevious", "invert": False},
        "decoder": {"type": "Sequence", "decoders": _joined()},
    }


def _joined() -> list[dict[str, Any]]:
    """The pieces' texts in a row, bytes as characters."""
    space = {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}
    return [space, {"type": "ByteFallback"}, {"type": "Fuse"}]
