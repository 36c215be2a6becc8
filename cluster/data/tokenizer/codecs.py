"""What turns text into ids inside a Tokenizer: sentencepiece models trained here, and tokenizers of imported models.

    library = "sentencepiece"     ours: a line at a time, every text survives          (info without `library` too)
              "whole-text"        another's sentencepiece model: prefixes and normalises as it was trained to
              "tokenizers"        another's tokenizer.json, e.g. byte-level BPE; needs the library of that name

Completions are decoded as they continue a text, so a space at their beginning stays: libraries would strip it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

# sentencepiece writes a space as U+2581 and turns each back into a space when it decodes: a text that
# contains the character itself must reach the ids as its three bytes.
SPACE_MARK = "\u2581"
_LINES = re.compile(r"[^\n]*\n+|[^\n]+")


class Codec(Protocol):
    size: int

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


def make_codec(model: bytes, info: dict[str, Any]) -> Codec:
    """Raises ImportError, with what to install, if the library is missing."""
    return _CODECS[info.get("library", "sentencepiece")](model)


class SentencePiece:
    """Text in lines, each with its newlines: bounded memory, and faster than one long text."""

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size: int = self.processor.vocab_size()
        self._mark = [self.processor.piece_to_id(f"<0x{b:02X}>") for b in SPACE_MARK.encode()]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(text.split(SPACE_MARK)):
            if number:
                ids += self._mark
            for line in self.processor.encode(_LINES.findall(part), num_threads=1):
                ids += line
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.processor.decode(list(ids))


class _Anchored(ABC):
    """Decodes after a first token that is taken off again, so that what follows is not a text's beginning."""

    size: int
    _anchor: list[int]
    _start: int

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    def _anchor_at(self, ids: list[int]) -> None:
        self._anchor = ids
        self._start = len(self._decode(ids))

    def decode(self, ids: Sequence[int]) -> str:
        known = [i for i in ids if i < self.size]  # an embedding may have more rows than the tokenizer has ids
        return self._decode([*self._anchor, *known])[self._start :]


class WholeText(_Anchored):
    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size: int = self._processor.vocab_size()
        self._anchor_at(self.encode("a"))

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def _decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)


class HuggingFace(_Anchored):
    """`tokenizers`, with special tokens that text never matches."""

    def __init__(self, model: bytes) -> None:
        self._tokenizer = load_tokenizers(model)
        self._tokenizer.encode_special_tokens = True
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._anchor_at(self.encode("a"))

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def load_tokenizers(model: bytes) -> Any:
    """The `tokenizers.Tokenizer` of a tokenizer.json."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError(
            "This model's tokenizer is a Hugging Face tokenizer.json, which the package `tokenizers` reads; it isn't "
            "installed. Install it: pip install 'tokenizers>=0.22,<1' (or tokenmill's extra [hf])."
        ) from error
    return Tokenizer.from_buffer(model)


_CODECS: dict[str, type[Any]] = {"sentencepiece": SentencePiece, "whole-text": WholeText, "tokenizers": HuggingFace}
