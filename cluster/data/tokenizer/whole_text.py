"""Another's sentencepiece model, with the tokens that were added beside it, as the reference loader runs it.

    text ── cut at added tokens ──▶ stretches ── prefix, sentencepiece ──▶ ids

A space stands before a text's first word, so that it is one piece with the same word in the middle of a sentence.
`prefix` says where, as three generations of loaders differ:

    "each"      before every stretch, whatever it begins with: sentencepiece's own way
    "always"    before every stretch that doesn't begin with one        (Llama's class, `legacy` true)
    "first"     the same, only where the text itself begins             (Llama's class, `legacy` false)
    "never"                                                             (Gemma's)
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from cluster.data.tokenizer.pieces import SPACE_MARK, sentencepiece_bytes

_IN_WORDS, _JOINERS = {"Mn", "Mc", "Me", "Nd", "Nl", "Pc"}, {"\u200c", "\u200d"}
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Added:
    """A token beside the pieces; the flags are those of Hugging Face's AddedToken."""

    id: int
    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class WholeText:
    """Codec of a sentencepiece model that was trained elsewhere. info: see foreign.foreign_info."""

    def __init__(self, model: bytes, info: dict[str, Any]) -> None:
        self._prefix: str = info.get("prefix", "each")
        plain = info.get("normalises", True)
        self._with = _processor(model, prefix=None if self._prefix == "each" else True, normalises=plain)
        self._without = _processor(model, prefix=False, normalises=plain)
        self._added = [Added(**token) for token in info.get("added", [])]
        self.size: int = max([self._with.vocab_size(), *(t.id + 1 for t in self._added)])
        self._special = {t.id for t in self._added if t.special}
        self._content = {t.id: t.content for t in self._added}
        self._unknown: int = self._with.unk_id()
        self._anchor = self.encode("a")
        self._strips = _has_prefix(model) if self._prefix == "each" else self._prefix != "never"

    def pieces(self) -> list[bytes | None]:
        own = [sentencepiece_bytes(self._without, i) for i in range(self._without.vocab_size())]
        found = [*own, *[None] * (self.size - len(own))]
        for i, content in self._content.items():
            found[i] = None if i in self._special else content.encode()
        return found

    def encode(self, text: str, special: bool = False) -> list[int]:
        ids: list[int] = []
        for part, begins in self._stretches(text, special):
            if isinstance(part, int):
                ids.append(part)
            elif part:
                ids += (self._with if self._prefixed(part, begins) else self._without).encode(part)
        return ids

    def encode_spans(self, text: str, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode`, and the characters that each id stands for, as (begin, end)."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        at = 0
        for part, begins in self._stretches(text, special):
            if isinstance(part, int):
                length = len(self._content[part])
                found = text.find(self._content[part], at)  # after spaces, where the token takes those too
                ids.append(part)
                spans.append((at, found + length))
                at = found + length
            elif part:
                at = text.find(part, at)
                processor = self._with if self._prefixed(part, begins) else self._without
                found = processor.encode(part, out_type="proto").pieces
                ids += [piece.id for piece in found]
                spans += [(at + begin, at + end) for begin, end in _characters_of(part, found)]
                at += len(part)
        return ids, spans

    def decode(self, ids: Sequence[int], keep_special: bool = False, continues: bool = False) -> str:
        known = [i for i in ids if 0 <= i < self.size and (keep_special or i not in self._special)]
        if continues:
            return self._text([*self._anchor, *known])[len(self._text(self._anchor)) :]
        text = self._text(known)
        return text.removeprefix(" ") if self._strips else text

    def _prefixed(self, part: str, begins: bool) -> bool:
        if self._prefix == "each":
            return True
        marked = part.startswith((" ", SPACE_MARK))
        return not marked and (self._prefix == "always" or (self._prefix == "first" and begins))

    def _stretches(self, text: str, special: bool) -> Iterator[tuple[str | int, bool]]:
        """(a stretch of text or an added token's id, whether the text begins there)"""
        wanted = [t for t in self._added if special or not t.special]
        parts: list[str | int] = [text]
        for normalized in (False, True):  # tokens that are matched before the text is normalised go first
            tokens = [t for t in wanted if t.normalized == normalized]
            if tokens:
                parts = [p for part in parts for p in ([part] if isinstance(part, int) else _cut(part, tokens))]
        for number, part in enumerate(parts):
            yield part, number == 0

    def _text(self, ids: Sequence[int]) -> str:
        out: list[str] = []
        run = bytearray()
        for i in [*ids, None]:
            piece = "" if i is None else self._content.get(i) or self._with.id_to_piece(i)
            if byte := _BYTE.fullmatch(piece):
                run.append(int(byte[1], 16))
                continue
            if run:
                out.append(_characters(bytes(run)))
                run.clear()
            out.append(piece.replace(SPACE_MARK, " "))
        return "".join(out)


def _characters(run: bytes) -> str:
    """Bytes that follow one another are characters together, or none of them is."""
    try:
        return run.decode("utf-8")
    except UnicodeDecodeError:
        return "\ufffd" * len(run)


def _characters_of(text: str, found: Any) -> list[tuple[int, int]]:
    """The characters of each piece. The bytes of one character all stand for it, as does a prefix for what follows."""
    ends = accumulate((len(character.encode()) for character in text), initial=0)
    place = {end: number for number, end in enumerate(ends)}  # from bytes to characters
    spans = [(place[piece.begin], place[piece.end]) for piece in found]
    for n in range(len(spans) - 2, -1, -1):
        if spans[n][0] == spans[n][1] == spans[n + 1][0]:
            spans[n] = spans[n + 1]
    return spans


def _processor(model: bytes, prefix: bool | None, normalises: bool) -> Any:
    """The model's processor. prefix: whether a text gets one; None: as the model says."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as sp

    proto = sp.ModelProto.FromString(model)  # type: ignore[attr-defined]
    if prefix is not None:
        proto.normalizer_spec.add_dummy_prefix = prefix
    if not normalises:
        proto.normalizer_spec.name, proto.normalizer_spec.precompiled_charsmap = "identity", b""
        proto.normalizer_spec.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def _has_prefix(model: bytes) -> bool:
    from sentencepiece import sentencepiece_model_pb2 as sp

    return sp.ModelProto.FromString(model).normalizer_spec.add_dummy_prefix  # type: ignore[attr-defined]


def _cut(text: str, tokens: Sequence[Added]) -> list[str | int]:
    """The text in stretches, and the ids of the tokens between them: the leftmost first, of several the longest."""
    parts: list[str | int] = []
    by_content = {t.content: t for t in tokens}
    pattern = "|".join(re.escape(c) for c in sorted(by_content, key=len, reverse=True))
    start = 0
    for found in re.finditer(pattern, text):
        token, begin, end = by_content[found[0]], found.start(), found.end()
        if token.single_word and (_in_word(text[:begin][-1:]) or _in_word(text[end : end + 1])):
            continue
        if token.lstrip:
            begin = max(start, len(text[:begin].rstrip()))
        if token.rstrip:
            end += len(text[end:]) - len(text[end:].lstrip())
        if begin > start:
            parts.append(text[start:begin])
        parts.append(token.id)
        start = end
    if start < len(text):
        parts.append(text[start:])
    return parts


def _in_word(character: str) -> bool:
    """Unicode's word characters (UTS 18), which are more than Python's: combining marks and joiners too."""
    return character.isalpha() or unicodedata.category(character or " ") in _IN_WORDS or character in _JOINERS
