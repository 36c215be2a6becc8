"""A Hugging Face folder's tokenizer as ours: its bytes, and what our tokenizer.json says of it.

    tokenizer.model     sentencepiece; else tokenizer.json, which then needs `tokenizers` to run
    added tokens        those of tokenizer_config.json (or added_tokens.json, of older folders) beside either
    special tokens      named in tokenizer_config.json, special_tokens_map.json, config.json, generation_config.json

What each says is read as the reference loader (AutoTokenizer of `transformers`) reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.data.tokenizer.by_class import as_its_class
from cluster.data.tokenizer.codecs import load_tokenizers
from cluster.data.tokenizer.declared import (
    FLAGS,
    NAMED,
    check_declared,
    content_of,
    named_in,
    read_about,
    read_declared,
    roles_of,
    token_of,
)
from cluster.data.tokenizer.tokenizer import BOS, EOS, FORMAT, PAD, SPECIAL, UNK, Tokenizer, info_of
from cluster.errors import UserError
from model.files import broken, given, read_json, read_text, regular

KEPT = (  # files of another's tokenizer that go back as they came
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # sentencepiece's kinds of pieces; the last is always matched whole


def read_tokenizer(source: Path) -> tuple[bytes, dict[str, Any] | None]:
    """The tokenizer's bytes and our info about it; None: the folder has none.

    Raises:
        UserError: a file is broken, or its only files are of a kind that isn't read.
    """
    model_path, json_path = source / "tokenizer.model", source / "tokenizer.json"
    if given(model_path):
        model = regular(model_path, "a sentencepiece model").read_bytes()
        proto = _sentencepiece(model, model_path)
        if ours := own_info(model):
            return model, ours
        if not given(json_path) or _asks_for_pieces(read_about(source)):
            return model, with_turns(model, _of_sentencepiece(source, proto))
    if given(json_path):
        file = read_json(json_path)
        model = as_its_class(regular(json_path, "a JSON object").read_bytes(), read_about(source))
        return model, with_turns(model, _of_tokenizers(source, json_path, model, file))
    if (source / "vocab.json").is_file():
        raise UserError(
            f"{source} has vocab.json but no tokenizer.json: AutoTokenizer.from_pretrained(…).save_pretrained(…) "
            "writes one."
        )
    return b"", None


def own_info(model: bytes) -> dict[str, Any] | None:
    """The info of a sentencepiece model that was trained here: it has our special tokens in their places."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    names = (PAD, UNK, BOS, EOS, *SPECIAL)
    ours = processor.vocab_size() > len(names) and all(processor.id_to_piece(i) == n for i, n in enumerate(names))
    return info_of(model, "bpe" if _is_bpe(processor) else "unigram") if ours else None


def foreign_info(library: str, special: dict[str, int], ids: dict[str, Any], adds_bos: bool, **more: Any) -> Any:
    """What our tokenizer.json says of a tokenizer that was trained elsewhere.

    Args:
        special: special tokens by name.
        ids: of bos, eos (or a list of them: where generation ends) and pad, as far as it has them.
        more: `files`, what goes back as it came; `added`, `prefix` and `normalises` for whole_text.py; `added` and
            `cleans` for codecs.HuggingFace; `template` and `named` for template.py.
    """
    eos = ids.get("eos", [])
    stops = list(eos) if isinstance(eos, list) else [eos]
    first = stops[0] if stops else -1
    return {
        "format": FORMAT,
        "library": library,
        "pad_id": ids.get("pad", first),
        "unk_id": -1,
        "bos_id": ids.get("bos", -1),
        "eos_id": first,
        "adds_bos": adds_bos and "bos" in ids,
        "stop_ids": stops,
        "special": special,
        "ids": ids,
        "files": {},
        **more,
    }


def with_turns(model: bytes, info: dict[str, Any]) -> dict[str, Any]:
    """The info with the token that ends an assistant's message by the chat template: generation stops there too."""
    tokenizer = Tokenizer.from_bytes(model, info)
    end = tokenizer.template.turn_end() if tokenizer.template else None
    if end is None:
        return info
    i = info["special"][end]
    return info | {"end_id": i, "stop_ids": list(dict.fromkeys([*info["stop_ids"], i]))}


def _template(source: Path, about: dict[str, Any]) -> str | None:
    """The chat template: a file of its own, or in tokenizer_config.json, where several have names."""
    if given(source / "chat_template.jinja"):
        return read_text(source / "chat_template.jinja")
    found = about.get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _texts(about: dict[str, Any], ids: dict[str, Any], by_id: dict[int, str]) -> dict[str, str]:
    """The texts of special tokens by their roles, as a template asks for them."""
    told = {role: name for role in NAMED if (name := content_of(about.get(role)))}
    return {f"{n}_token": by_id[i] for n, i in ids.items() if isinstance(i, int) and i in by_id} | told


def _of_sentencepiece(source: Path, proto: Any) -> dict[str, Any]:
    about = read_about(source)
    own_way = _asks_for_pieces(about)
    if own_way and about["tokenizer_class"].startswith("Gemma"):
        prefix = "never"
    elif own_way:
        never = about.get("add_prefix_space") is False
        prefix = "never" if never else "always" if about.get("legacy", False) else "first"
    else:
        prefix = "each" if about.get("legacy", True) or not proto.normalizer_spec.add_dummy_prefix else "first"
    base: dict[int, dict[str, Any]] = {}
    for i, piece in enumerate(proto.pieces):
        if piece.type in (UNKNOWN, CONTROL) or (piece.type == USER_DEFINED and own_way):
            base[i] = token_of(i, piece.piece, special=piece.type != USER_DEFINED, normalized=False)
    known = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    declared = read_declared(source, about)
    check_declared(source, declared, known, len(proto.pieces))
    added = base | declared
    named = {known[n]: token_of(known[n], n, special=True) for n in named_in(about) if n in known}
    added = named | added
    tokens: list[dict[str, Any]] = [
        t | {"special": t["special"] or t["content"] in roles_of(about)} for _, t in sorted(added.items())
    ]
    special = {t["content"]: t["id"] for t in tokens if t["special"]}
    ids = _ids(source, about, {t["content"]: t["id"] for t in tokens} | known)
    adds_bos = bool(about.get("add_bos_token", True))
    return foreign_info(
        "whole-text",
        special,
        ids,
        adds_bos,
        files=_files(source),
        template=_template(source, about),
        named=_texts(about, ids, {i: t for t, i in known.items()}),
        added=tokens,
        prefix=prefix,
        normalises=not own_way,
    )


def _asks_for_pieces(about: dict[str, Any]) -> bool:
    """Whether the reference loader's class takes the pieces alone from a file, and has its own way of the rest."""
    return str(about.get("tokenizer_class") or "").startswith(("Llama", "CodeLlama", "Gemma"))


def _of_tokenizers(source: Path, path: Path, model: bytes, file: dict[str, Any]) -> dict[str, Any]:
    about, names = read_about(source), named_in(read_about(source))
    bare = _loaded(path, model, [])
    declared = read_declared(source, about, tokenizer_json=False)
    there = {i: _flags(i, t) for i, t in bare.get_added_tokens_decoder().items()}
    added = []
    for i, token in sorted(declared.items()):
        token = token | {"special": token["special"] or token["content"] in roles_of(about)}
        if there.get(i) != token:
            added.append(token)
    contents = {t["content"] for t in (*there.values(), *added)}
    for name in names:
        i = bare.token_to_id(name)
        if i is not None and name not in contents:
            added.append(token_of(i, name, special=True))
    tokenizer = _loaded(path, model, added)
    for token in added:
        i = tokenizer.token_to_id(token["content"])
        if i != token["id"]:
            raise UserError(
                f"{source}: the token {token['content']!r} has the id {token['id']} in tokenizer_config.json or "
                f"added_tokens.json, and {i} in tokenizer.json. Save the tokenizer again with its own library."
            )
    special = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    ids = _ids(source, about, {n: i for n in names if (i := tokenizer.token_to_id(n)) is not None})
    if "add_bos_token" in about or "add_eos_token" in about:
        adds_bos = bool(about.get("add_bos_token", False))
    else:
        adds_bos = "bos" in ids and tokenizer.encode("a").ids[:1] == [ids["bos"]]
    kind = (file.get("model") or {}).get("type") or type(tokenizer.model).__name__
    cleans = bool(about.get("clean_up_tokenization_spaces")) and kind != "BPE"
    by_id = {i: tokenizer.id_to_token(i) for i in ids.values() if isinstance(i, int)}
    return foreign_info(
        "tokenizers",
        special,
        ids,
        adds_bos,
        files=_files(source),
        template=_template(source, about),
        named=_texts(about, ids, by_id),
        added=added,
        cleans=cleans,
    )


def _loaded(path: Path, model: bytes, added: list[dict[str, Any]]) -> Any:
    try:
        return load_tokenizers(model, added)
    except ImportError:
        raise
    except Exception as error:  # the library raises nothing more special
        raise UserError(f"{path} is JSON, but no tokenizer that `tokenizers` can read: {str(error)[:200]}.") from None


def _sentencepiece(model: bytes, path: Path) -> Any:
    """The model's parts. Raises UserError for what is none, or is cut off."""
    import sentencepiece
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2 as sp

    try:
        proto = sp.ModelProto.FromString(model)  # type: ignore[attr-defined]
        whole = bool(proto.pieces) and proto.HasField("trainer_spec")  # which comes last
        if whole:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            processor.id_to_piece(list(range(processor.vocab_size())))  # each is text
    except (DecodeError, RuntimeError, UnicodeDecodeError):
        whole = False
    if not whole:
        also = (path.parent / "tokenizer.json").is_file()
        hint = " Or take it away: tokenizer.json is beside it, and is read then." if also else ""
        raise UserError(f"{broken(path, 'a sentencepiece model')}{hint}")
    return proto


def _ids(source: Path, about: dict[str, Any], known: dict[str, int]) -> dict[str, Any]:
    """Of bos, eos and pad: the tokenizer's own bos, and the model's own stops."""
    generation = read_json(source / "generation_config.json", missing={})
    config = read_json(source / "config.json", missing={})
    ids: dict[str, Any] = {}
    for name in ("bos", "eos", "pad"):
        named = known.get(content_of(about.get(f"{name}_token")))
        for file, says in (("generation_config.json", generation), ("config.json", config)):
            _check_id(source / file, f"{name}_token_id", says.get(f"{name}_token_id"))
        told = [generation.get(f"{name}_token_id"), config.get(f"{name}_token_id")]
        found = [i for i in ([named, *told] if name == "bos" else [*told, named]) if i not in (None, -1)]  # -1: none
        ids |= {name: found[0]} if found else {}
    return ids


def _check_id(path: Path, key: str, value: Any) -> None:
    many = value if isinstance(value, list) and key == "eos_token_id" else [] if value is None else [value]
    if not all(type(i) is int for i in many) or (
        key == "eos_token_id" and any(isinstance(i, int) and i < 0 for i in many)
    ):
        raise UserError(f"{path}: {key} = {str(value)[:80]} is no token's id.")


def _files(source: Path) -> dict[str, str]:
    return {n: read_text(source / n) for n in KEPT if given(source / n)}


def _flags(i: int, token: Any) -> dict[str, Any]:
    return {"id": i, "content": token.content, "special": token.special} | {f: getattr(token, f) for f in FLAGS}


def _is_bpe(processor: Any) -> bool:
    """BPE's scores are the negative ranks of its pieces; Unigram's are logarithms."""
    start = len((PAD, UNK, BOS, EOS, *SPECIAL)) + 256
    return all(processor.get_score(i) == start - i for i in range(start, min(start + 8, processor.vocab_size())))
