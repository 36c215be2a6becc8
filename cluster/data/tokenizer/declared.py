"""The tokens that a Hugging Face folder adds to its tokenizer's own, and the special ones that it names.

tokenizer_config.json lists them, or in older folders added_tokens.json and special_tokens_map.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.errors import UserError
from model.files import given, read_json

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


def read_about(source: Path) -> dict[str, Any]:
    """tokenizer_config.json, and what only special_tokens_map.json says, as older folders have it."""
    found = read_json(source / "special_tokens_map.json", missing={}) | read_json(
        source / "tokenizer_config.json", missing={}
    )
    for name in ("additional_special_tokens", "extra_special_tokens"):
        if not isinstance(found.get(name), list | dict | None):
            raise UserError(f"{source / 'tokenizer_config.json'}: {name} must be a list, not {found[name]!r}.")
    return found


def roles_of(about: dict[str, Any]) -> list[str]:
    """The special tokens that have a role."""
    return [name for n in NAMED if (name := content_of(about.get(n)))]


def named_in(about: dict[str, Any]) -> list[str]:
    """The special tokens that have a role or are listed."""
    listed = [about.get("additional_special_tokens"), about.get("extra_special_tokens")]
    more = [t for tokens in listed for t in (tokens.values() if isinstance(tokens, dict) else tokens or [])]
    return [*roles_of(about), *(name for token in more if (name := content_of(token)))]


def read_declared(source: Path, about: dict[str, Any], tokenizer_json: bool = True) -> dict[int, dict[str, Any]]:
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
        names, where = roles_of(about), source / "added_tokens.json"
        listed = [(i, {"content": n, "special": n in names}) for n, i in read_json(where, missing={}).items()]
        path = source / "tokenizer.json"
        if not listed and tokenizer_json and given(path):
            where = path
            listed = [(t.get("id"), t) for t in read_json(path).get("added_tokens") or []]
    found: dict[int, dict[str, Any]] = {}
    for number, token in listed:
        try:
            i, content = int(number), content_of(token)
        except (TypeError, ValueError):
            raise UserError(f"{where}: {number!r} is not a token's id.") from None
        if not content or i < 0:
            raise UserError(f"{where}: the token with the id {i} has no text, or no id: no text could become it.")
        if i in found and found[i]["content"] != content:
            raise UserError(f"{where}: {found[i]['content']!r} and {content!r} both have the id {i}.")
        flags = token if isinstance(token, dict) else {}
        special = bool(flags.get("special"))
        found[i] = token_of(i, content, special, **{f: bool(flags[f]) for f in FLAGS if f in flags})
    return found


def check_declared(source: Path, declared: dict[int, dict[str, Any]], known: dict[str, int], size: int) -> None:
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


def token_of(i: int, content: str, special: bool, **flags: bool) -> dict[str, Any]:
    """A token's fields, as whole_text.Added and AddedToken take them."""
    plain = dict.fromkeys(FLAGS, False) | {"normalized": not special}
    return {"id": i, "content": content, "special": special, **plain, **flags}


def content_of(token: Any) -> str:
    """A special token is written as its text, or as an object with it."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""
