"""A Hugging Face folder's tokenizer as ours: its bytes, and what our tokenizer.json says of it.

    tokenizer.model     sentencepiece; else tokenizer.json, which then needs `tokenizers` to run
    added tokens        those of tokenizer_config.json (or added_tokens.json, of older folders) beside either
    special tokens      named in tokenizer_config.json, special_tokens_map.json, config.json, generation_config.json

What each says is read as the reference loader (AutoTokenizer of `transformers`) reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.data.tokenizer.codecs import load_tokenizers
from cluster.data.tokenizer.tokenizer import BOS, EOS, PAD, SPECIAL, UNK, Tokenizer, info_of
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
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
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
        if not given(json_path) or _asks_for_pieces(_about(source)):
            return model, with_turns(model, _of_sentencepiece(source, proto))
    if given(json_path):
        model = regular(json_path, "a JSON object").read_bytes()
        return model, with_turns(model, _of_tokenizers(source, json_path))
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
        "format": 1,
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
    told = {role: name for role in NAMED if (name := _content(about.get(role)))}
    return {f"{n}_token": by_id[i] for n, i in ids.items() if isinstance(i, int) and i in by_id} | told


def _of_sentencepiece(source: Path, proto: Any) -> dict[str, Any]:
    about = _about(source)
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
            base[i] = _token(i, piece.piece, special=piece.type != USER_DEFINED, normalized=False)
    known = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    declared = _declared(source, about)
    _check_declared(source, declared, known, len(proto.pieces))
    added = base | declared
    named = {known[n]: _token(known[n], n, special=True) for n in _named(about) if n in known}
    added = named | added
    tokens: list[dict[str, Any]] = [
        t | {"special": t["special"] or t["content"] in _roles(about)} for _, t in sorted(added.items())
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


def _of_tokenizers(source: Path, path: Path) -> dict[str, Any]:
    about, names, file = _about(source), _named(_about(source)), read_json(path)
    model = path.read_bytes()
    bare = _loaded(path, model, [])
    declared = _declared(source, about, tokenizer_json=False)
    there = {i: _flags(i, t) for i, t in bare.get_added_tokens_decoder().items()}
    added = []
    for i, token in sorted(declared.items()):
        token = token | {"special": token["special"] or token["content"] in _roles(about)}
        if there.get(i) != token:
            added.append(token)
    contents = {t["content"] for t in (*there.values(), *added)}
    for name in names:
        i = bare.token_to_id(name)
        if i is not None and name not in contents:
            added.append(_token(i, name, special=True))
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


def _about(source: Path) -> dict[str, Any]:
    """tokenizer_config.json, and what only special_tokens_map.json says, as older folders have it."""
    return read_json(source / "special_tokens_map.json", missing={}) | read_json(
        source / "tokenizer_config.json", missing={}
    )


def _roles(about: dict[str, Any]) -> list[str]:
    """The special tokens that have a role."""
    return [name for n in NAMED if (name := _content(about.get(n)))]


def _named(about: dict[str, Any]) -> list[str]:
    """The special tokens that have a role or are listed."""
    listed = [about.get("additional_special_tokens"), about.get("extra_special_tokens")]
    more = [t for tokens in listed for t in (tokens.values() if isinstance(tokens, dict) else tokens or [])]
    return [*_roles(about), *(name for token in more if (name := _content(token)))]


def _declared(source: Path, about: dict[str, Any], tokenizer_json: bool = True) -> dict[int, dict[str, Any]]:
    """Tokens that the folder adds to those of its model, by id.

    tokenizer_json: look there too, where it is beside a tokenizer.model.
    """
    decoder = about.get("added_tokens_decoder")
    if decoder is not None:
        where = source / "tokenizer_config.json"
        if not isinstance(decoder, dict):
            raise UserError(f"{where}: added_tokens_decoder must be an object, not a {type(decoder).__name__}.")
        listed = list(decoder.items())
    else:
        names, where = _roles(about), source / "added_tokens.json"
        listed = [(i, {"content": n, "special": n in names}) for n, i in read_json(where, missing={}).items()]
        path = source / "tokenizer.json"
        if not listed and tokenizer_json and given(path):
            where = path
            listed = [(t.get("id"), t) for t in read_json(path).get("added_tokens") or []]
    found: dict[int, dict[str, Any]] = {}
    for number, token in listed:
        try:
            i, content = int(number), _content(token)
        except (TypeError, ValueError):
            raise UserError(f"{where}: {number!r} is not a token's id.") from None
        if not content or i < 0:
            raise UserError(f"{where}: the token with the id {i} has no text, or no id: no text could become it.")
        if i in found and found[i]["content"] != content:
            raise UserError(f"{where}: {found[i]['content']!r} and {content!r} both have the id {i}.")
        flags = token if isinstance(token, dict) else {}
        special = bool(flags.get("special"))
        found[i] = _token(i, content, special, **{f: bool(flags[f]) for f in FLAGS if f in flags})
    return found


def _check_declared(source: Path, declared: dict[int, dict[str, Any]], known: dict[str, int], size: int) -> None:
    """Raises UserError where the reference loader would number the tokens otherwise than they say."""
    for number, (i, token) in enumerate(sorted((i, t) for i, t in declared.items() if i >= size)):
        content = token["content"]
        if content in known:
            raise UserError(
                f"{source}: the added token {content!r} has the id {i}, but tokenizer.model has it as piece "
                f"{known[content]}: no text could become {i}."
            )
        if i != size + number:
            raise UserError(
                f"{source}: the added token {content!r} has the id {i}, but the ids before it end at "
                f"{size + number - 1}, and a loader would give it {size + number}. Save the tokenizer again."
            )


def _ids(source: Path, about: dict[str, Any], known: dict[str, int]) -> dict[str, Any]:
    """Of bos, eos and pad: the tokenizer's own bos, and the model's own stops."""
    generation = read_json(source / "generation_config.json", missing={})
    config = read_json(source / "config.json", missing={})
    ids: dict[str, Any] = {}
    for name in ("bos", "eos", "pad"):
        named = known.get(_content(about.get(f"{name}_token")))
        told = [generation.get(f"{name}_token_id"), config.get(f"{name}_token_id")]
        found = [i for i in ([named, *told] if name == "bos" else [*told, named]) if i is not None]
        ids |= {name: found[0]} if found else {}
    return ids


def _files(source: Path) -> dict[str, str]:
    return {n: read_text(source / n) for n in KEPT if given(source / n)}


def _token(i: int, content: str, special: bool, **flags: bool) -> dict[str, Any]:
    """A token's fields, as whole_text.Added and AddedToken take them."""
    plain = dict.fromkeys(FLAGS, False) | {"normalized": not special}
    return {"id": i, "content": content, "special": special, **plain, **flags}


def _flags(i: int, token: Any) -> dict[str, Any]:
    return {"id": i, "content": token.content, "special": token.special} | {f: getattr(token, f) for f in FLAGS}


def _content(token: Any) -> str:
    """A special token is written as its text, or as an object with it."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _is_bpe(processor: Any) -> bool:
    """BPE's scores are the negative ranks of its pieces; Unigram's are logarithms."""
    start = len((PAD, UNK, BOS, EOS, *SPECIAL)) + 256
    return all(processor.get_score(i) == start - i for i in range(start, min(start + 8, processor.vocab_size())))
