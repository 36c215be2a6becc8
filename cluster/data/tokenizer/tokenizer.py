"""The tokenizer: sentencepiece pieces with byte fallback, so that every text survives encode and decode.

    id 0 <pad>  1 <unk>  2 <s> bos  3 </s> eos  4 <|system|>  5 <|user|>  6 <|assistant|>  7 <|end|>
    id 8..263   the bytes 0..255, for what no piece covers
    id 264..    pieces of text

Text goes in as it is: no normalisation, no dummy prefix, white space and newlines kept (Kudo and Richardson
2018, 1808.06226). The special tokens are CONTROL symbols, which text never matches: a document that contains
"<|user|>" is encoded as those eight characters, and only the chat template (chat.py) can put the id there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.data.tokenizer.codecs import make_codec
from cluster.data.tokenizer.template import ChatTemplate
from cluster.errors import UserError
from model.files import check_format, given, named, read_json, regular

FORMAT = 1  # of our tokenizer.json
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL = (SYSTEM, USER, ASSISTANT, END)
PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<s>", "</s>"
RESERVED = 4 + len(SPECIAL) + 256
LEADS = ("\n", ".", "a", "\0", "")


class Tokenizer:
    """A trained tokenizer. Pickles as its bytes, so it travels to any worker.

    Args:
        folder: holds tokenizer.model and tokenizer.json: a tokenizer artifact's or a model's folder.

    Raises:
        UserError: no tokenizer is there; later, a text on which an imported one's own library gives up.
    """

    where = Path("model/tokenizer.json")  # for messages, of one that came without a folder

    def __init__(self, folder: str | Path):
        model, info = (Path(folder) / name for name in ("tokenizer.model", "tokenizer.json"))
        for path in (model, info):
            if not given(path):
                raise UserError(f"{folder} has no {path.name}: it isn't a tokenizer's folder.")
        about = read_json(info)
        check_format(about.get("format"), FORMAT, info)
        if "special" not in about:
            raise UserError(f"{info} isn't a tokenizer of tokenmill's; of a Hugging Face folder: tokenmill import.")
        with named(info):
            check_kinds(about)
            self._load(regular(model, "a tokenizer").read_bytes(), about)
        self.where = info

    @classmethod
    def from_bytes(cls, model: bytes, info: dict[str, Any]) -> Tokenizer:
        tokenizer = cls.__new__(cls)
        tokenizer._load(model, info)
        return tokenizer

    def _load(self, model: bytes, info: dict[str, Any]) -> None:
        self.model, self.info = model, info
        self._codec = make_codec(model, info)
        self.vocab_size: int = self._codec.size
        self.special: dict[str, int] = dict(info["special"])
        self.unk_id, self.bos_id, self.eos_id = (info[f"{n}_id"] for n in ("unk", "bos", "eos"))  # -1: it has none
        self.pad_id: int = max(0, info["pad_id"])  # fills rows and is never learned or seen, so any id will do
        self.adds_bos: bool = info.get("adds_bos", True)
        self.end_id: int = info.get("end_id", {END: self.eos_id, **self.special}[END])
        # An imported model's own way to write a conversation; None: it has none, or it is ours (chat.py).
        source = info.get("template")
        self.template = ChatTemplate(source, info["named"], list(self.special)) if source else None
        # Where generation ends. An imported model may end its turns at tokens of its own.
        self.stop_ids: tuple[int, ...] = tuple(info.get("stop_ids", (self.eos_id, self.end_id)))

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "info": self.info}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._load(state["model"], state["info"])

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]:
        """Ids of a text, of any length. What can't be UTF-8 (a lone surrogate) becomes U+FFFD.

        bos: begin with the beginning-of-sequence id, unless this is an imported model's that wants none.
        special: names of special tokens in the text are those tokens: for what an imported model's chat template
            wrote, never for a person's text.
        """
        ids = [self.bos_id] if bos and self.adds_bos else []
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        with named(self.where):
            ids += self._codec.encode(text, special)
        if eos:
            ids.append(self.eos_id)
        return ids

    def encode_document(self, text: str) -> list[int]:
        """Ids of a whole document, from a token after which its first is predicted to its eos.

        It begins with bos, also where an imported model's prompts do not; with eos, which then stands between texts,
        where the model has no bos.
        """
        start = self.bos_id if self.bos_id >= 0 else self.eos_id
        return [i for i in (start, *self.encode(text), self.eos_id) if i >= 0]

    def encode_rendered(self, text: str, quoted: list[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
        """What an imported model's template wrote: its ids, and the (begin, end) in the text of each.

        Names of special tokens are those tokens, except where they are `quoted`: (begin, end) of a person's words.
        """
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        at = 0
        for begin, end in [*quoted, (len(text), len(text))]:
            for start, stop, special in ((at, begin, True), (begin, end, False)):
                if start == stop:
                    continue
                for i, b, e in self._stretch(text[start:stop], special, begins=start == 0):
                    ids.append(i)
                    spans.append((start + b, start + e))
            at = end
        return ids, spans

    def _stretch(self, text: str, special: bool, begins: bool) -> list[tuple[int, int, int]]:
        """(id, begin, end) of a stretch of a text; begins: it is the text's first."""
        for lead in ("",) if begins else LEADS:  # after one no space is put before the stretch, as before a text
            with named(self.where):
                spans = self._codec.encode_spans(lead + text, special)  # type: ignore[attr-defined]
            found = list(zip(*spans, strict=True))
            if all(e <= len(lead) or b >= len(lead) for _, (b, e) in found):  # none is one token with the lead
                break
        return [(i, b - len(lead), e - len(lead)) for i, (b, e) in found if e > len(lead) or not lead]

    def decode(self, ids: Iterable[int], *, keep_special: bool = False, continues: bool = False) -> str:
        """The text of `ids`; `keep_special` writes special tokens by name, else they leave nothing.

        `decode(encode(text)) == text` for every text, of a tokenizer that was trained here; an imported one gives what
        its own library gives. Bytes that are not UTF-8 become U+FFFD.

        continues: the ids go on from a text, such as a prompt: a space at their beginning is kept.
        """
        with named(self.where):
            return self._codec.decode([*map(int, ids)], keep_special, continues)

    def pieces(self) -> list[bytes | None]:
        """The bytes that each id stands for; None of one that writes nothing."""
        return self._codec.pieces()

    @property
    def processor(self) -> Any:
        """The sentencepiece processor of a tokenizer that was trained here."""
        return self._codec.processor  # type: ignore[attr-defined]

    def save(self, folder: str | Path) -> None:
        (Path(folder) / "tokenizer.model").write_bytes(self.model)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(self.info, indent=1) + "\n", encoding="utf-8")


KINDS: dict[str, Any] = {  # of our tokenizer.json's keys
    **dict.fromkeys(("pad_id", "unk_id", "bos_id", "eos_id", "end_id"), int),
    **dict.fromkeys(("special", "ids", "files", "named"), dict),
    **dict.fromkeys(("stop_ids", "added"), list),
    **dict.fromkeys(("library", "prefix"), str),
    **dict.fromkeys(("adds_bos", "cleans", "normalises"), bool),
    "template": (str, type(None)),
}
WITHIN: dict[str, Any] = {
    "special": int,
    "files": str,
    "named": str,
    "ids": (int, list),
    "stop_ids": int,
    "added": dict,
}


def check_kinds(info: dict[str, Any]) -> None:
    """Raises UserError for a value of our tokenizer.json that is of another kind than it must be."""
    for key, kind in KINDS.items():
        value = info.get(key)
        if key not in info:
            continue
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UserError(f"{key} = {str(value)[:80]} is of another kind.")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if wrong := [one for one in inner if not isinstance(one, WITHIN[key])]:
            raise UserError(f"{key} holds {str(wrong[0])[:80]}, which is of another kind.")


def info_of(model: bytes, algorithm: str) -> dict[str, Any]:
    """tokenizer.json of a sentencepiece model that training.py trained."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return {
        "format": FORMAT,
        "algorithm": algorithm,
        "vocab_size": processor.vocab_size(),
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": 2,
        "eos_id": 3,
        "special": {name: processor.piece_to_id(name) for name in SPECIAL},
    }
