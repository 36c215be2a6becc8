"""A sentencepiece tokenizer as the keys of a GGUF file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.data.tokenizer.exchange import TEMPLATE
from cluster.data.tokenizer.foreign import foreign_info
from cluster.errors import UserError

if TYPE_CHECKING:
    from cluster.data.tokenizer.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # token types, llama.cpp's and sentencepiece's
LONG = {"unknown": "unk", "bos": "bos", "eos": "eos", "padding": "pad"}  # llama.cpp's names of special tokens
ENDS = ("eos", "eot", "eom")  # of a text, a turn, a message
TEMPLATE_KEY = "tokenizer.chat_template"


def describe_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    processor = tokenizer.processor
    ids = range(tokenizer.vocab_size)

    def kind(i: int) -> int:
        if processor.is_unknown(i):
            return UNKNOWN
        return CONTROL if processor.is_control(i) else BYTE if processor.is_byte(i) else NORMAL

    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([processor.id_to_piece(i) for i in ids])
    writer.add_token_scores([processor.get_score(i) for i in ids])
    writer.add_token_types([kind(i) for i in ids])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_eot_token_id(tokenizer.end_id)
    writer.add_unk_token_id(tokenizer.unk_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE)


def sentencepiece_model(source: Path, given: dict[str, Any]) -> bytes:
    """The tokenizer as a sentencepiece model again."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as sp

    proto = sp.ModelProto()  # type: ignore[attr-defined]
    lists = [given.get(f"tokenizer.ggml.{n}") for n in ("tokens", "scores", "token_type")]
    sizes = [len(values) if isinstance(values, list) else 0 for values in lists]
    if len(set(sizes)) > 1:
        raise UserError(f"{source}: tokenizer.ggml has {sizes[0]} tokens, {sizes[1]} scores and {sizes[2]} kinds.")
    for piece, score, kind in zip(*lists, strict=True):  # type: ignore[arg-type]
        proto.pieces.add(piece=piece, score=score, type=kind)
    spec, ids = proto.trainer_spec, {n: given.get(f"tokenizer.ggml.{n}_token_id", -1) for n in LONG}
    spec.model_type, spec.vocab_size, spec.byte_fallback = spec.BPE, len(proto.pieces), True
    ends = {name: given.get(f"tokenizer.ggml.{name}_token_id", -1) for name in ENDS}
    for name, i in (ids | ends).items():
        if not isinstance(i, int) or not -1 <= i < len(proto.pieces):
            raise UserError(f"{source}: tokenizer.ggml.{name}_token_id = {i}, of {len(proto.pieces)} tokens.")
    spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = (ids[n] for n in LONG)
    spec.unk_piece, spec.bos_piece, spec.eos_piece, spec.pad_piece = (
        proto.pieces[ids[n]].piece if ids[n] >= 0 else f"<{n}>" for n in LONG
    )
    normal = proto.normalizer_spec
    normal.name = "identity"
    normal.remove_extra_whitespaces = bool(given.get("tokenizer.ggml.remove_extra_whitespaces", False))
    charsmap = given.get("tokenizer.ggml.precompiled_charsmap", [])
    try:
        normal.precompiled_charsmap = bytes(charsmap)
        sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{source}: its tokenizer.ggml keys are no sentencepiece model.") from None
    normal.add_dummy_prefix = given.get("tokenizer.ggml.add_space_prefix", True)
    return proto.SerializeToString()


def tokenizer_info(given: dict[str, Any]) -> dict[str, Any]:
    """What our tokenizer.json says of it; see foreign.foreign_info."""
    plain = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    added = [
        {"id": i, "content": token, "special": True, **plain}
        for i, (token, kind) in enumerate(
            zip(given["tokenizer.ggml.tokens"], given["tokenizer.ggml.token_type"], strict=True)
        )
        if kind in (UNKNOWN, CONTROL)
    ]
    special = {t["content"]: t["id"] for t in added}
    ids = {short: given.get(f"tokenizer.ggml.{long}_token_id") for long, short in LONG.items() if short != "unk"}
    ids = {name: i for name, i in ids.items() if i is not None}
    ends = [i for name in ENDS if (i := given.get(f"tokenizer.ggml.{name}_token_id")) is not None]
    if len(set(ends)) > 1:
        ids["eos"] = list(dict.fromkeys(ends))
    adds = given.get("tokenizer.ggml.add_bos_token", True)
    template = given.get(TEMPLATE_KEY)
    files = {"chat_template.jinja": template} if isinstance(template, str) else {}
    tokens = given["tokenizer.ggml.tokens"]
    named = {f"{n}_token": tokens[i] for n, i in ids.items() if isinstance(i, int) and i >= 0}
    more = {"files": files, "added": added, "template": template, "named": named}
    return foreign_info("whole-text", special, ids, adds, **more)
