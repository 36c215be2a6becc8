"""What turns text into ids inside a Tokenizer: sentencepiece models trained here, and tokenizers of imported models.

    library = "sentencepiece"     ours: a line at a time, every text survives          (info without `library` too)
              "whole-text"        another's sentencepiece model: whole_text.py
              "tokenizers"        another's tokenizer.json, e.g. byte-level BPE; needs the library of that name

A text never becomes a special token unless that is asked for (`special`), which only chat templates do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from cluster.data.tokenizer.pieces import sentencepiece_bytes, tokenizers_bytes
from cluster.data.tokenizer.whole_text import SPACE_MARK, WholeText

# sentencepiece writes a space as U+2581 and turns each back into a space when it decodes: a text that
# contains the character itself must reach the ids as its three bytes.
_LINES = re.compile(r"[^\n]*\n+|[^\n]+")
_CLEANED = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")),
)


class Codec(Protocol):
    """special: the names of special tokens in the text are those tokens.

    continues: the ids go on from a text, so that a space at their beginning stays; libraries would strip it.
    pieces: the bytes of each token; None of one that writes nothing.
    """

    size: int

    def encode(self, text: str, special: bool = False) -> list[int]: ...
    def decode(self, ids: Sequence[int], keep_special: bool = False, continues: bool = False) -> str: ...
    def pieces(self) -> list[bytes | None]: ...


def make_codec(model: bytes, info: dict[str, Any]) -> Codec:
    """Raises ImportError, with what to install, if the library is missing."""
    return _CODECS[info.get("library", "sentencepiece")](model, info)


class SentencePiece:
    """Text in lines, each with its newlines: bounded memory, and faster than one long text."""

    def __init__(self, model: bytes, info: dict[str, Any]) -> None:
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size: int = self.processor.vocab_size()
        self._mark = [self.processor.piece_to_id(f"<0x{b:02X}>") for b in SPACE_MARK.encode()]
        special = [*(info[f"{name}_id"] for name in ("pad", "bos", "eos")), *info["special"].values()]
        self._names = {i: self.processor.id_to_piece(i) for i in special}

    def encode(self, text: str, special: bool = False) -> list[int]:
        if special:
            raise ValueError("A tokenizer that was trained here has no names in texts: chat.py places its tokens.")
        ids: list[int] = []
        for number, part in enumerate(text.split(SPACE_MARK)):
            if number:
                ids += self._mark
            for line in self.processor.encode(_LINES.findall(part), num_threads=1):
                ids += line
        return ids

    def decode(self, ids: Sequence[int], keep_special: bool = False, continues: bool = False) -> str:
        out: list[str] = []
        run: list[int] = []
        for i in [*ids, None]:
            if i is not None and i not in self._names:
                run.append(i)
                continue
            if run:
                out.append(self.processor.decode(run))
                run = []
            if keep_special and i is not None:
                out.append(self._names[i])
        return "".join(out)

    def pieces(self) -> list[bytes | None]:
        return [None if i in self._names else sentencepiece_bytes(self.processor, i) for i in range(self.size)]


class HuggingFace:
    """A tokenizer.json; what it says of truncation and padding is for batches, and obeyed by no loader."""

    def __init__(self, model: bytes, info: dict[str, Any]) -> None:
        self._tokenizer = load_tokenizers(model, info.get("added", []))
        drop_post_processor(self._tokenizer)
        self.size: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._cleans: bool = info.get("cleans", False)
        self._anchor = self.encode("a")

    def encode(self, text: str, special: bool = False) -> list[int]:
        self._tokenizer.encode_special_tokens = not special
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_spans(self, text: str, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode`, and the characters that each id stands for, as (begin, end)."""
        self._tokenizer.encode_special_tokens = not special
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int], keep_special: bool = False, continues: bool = False) -> str:
        known = [i for i in ids if 0 <= i < self.size]  # an embedding may have more rows than the tokenizer has ids
        if continues:
            text = self._decode([*self._anchor, *known], keep_special)[len(self._decode(self._anchor, True)) :]
        else:
            text = self._decode(known, keep_special)
        for written, meant in _CLEANED if self._cleans else ():
            text = text.replace(written, meant)
        return text

    def pieces(self) -> list[bytes | None]:
        found = tokenizers_bytes(self._tokenizer)
        return [found.get(i) for i in range(self.size)]

    def _decode(self, ids: list[int], keep_special: bool) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=not keep_special)


def load_tokenizers(model: bytes, added: Sequence[dict[str, Any]] = ()) -> Any:
    """The `tokenizers.Tokenizer` of a tokenizer.json, with the tokens that other files add to it."""
    try:
        from tokenizers import AddedToken, Tokenizer
    except ImportError as error:
        raise ImportError(
            "This model's tokenizer is a Hugging Face tokenizer.json, which the package `tokenizers` reads; it isn't "
            "installed. Install it: pip install 'tokenizers>=0.22,<1' (or tokenmill's extra [hf])."
        ) from error
    tokenizer = Tokenizer.from_buffer(model)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_tokens([AddedToken(**{k: v for k, v in token.items() if k != "id"}) for token in added])
    return tokenizer


def drop_post_processor(tokenizer: Any) -> None:
    """Special tokens are placed by us; and some post-processors cut spaces out of what a token stands for."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])


_CODECS: dict[str, type[Any]] = {"sentencepiece": SentencePiece, "whole-text": WholeText, "tokenizers": HuggingFace}
