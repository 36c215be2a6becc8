"""Our tokenizer as the files that `AutoTokenizer.from_pretrained` reads, and theirs as ours.

Out:  tokenizer.json         the same pieces as a model of Hugging Face's `tokenizers`; written without that library
      tokenizer_config.json  names of the special tokens
      chat_template.jinja    chat.py's template
      tokenizer.model        the sentencepiece model itself, for whoever reads that, and for coming back
In:   foreign.py

In a Unigram model every character without a piece stands alone, so that it is bytes and its neighbours are as ever.
A piece's U+2581 is a space in tokenizer.json, so no text has to be rewritten on its way in or out, and a U+2581 in a
text becomes its bytes, as with us. Special tokens are where they differ on purpose: Hugging Face turns the *text*
"<|user|>" into the special token (`split_special_tokens=True` turns that off), which is how its templates work; ours
never does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.data.tokenizer.foreign import KEPT, read_tokenizer
from cluster.data.tokenizer.tokenizer import BOS, EOS, PAD, SPECIAL, UNK, Tokenizer
from cluster.data.tokenizer.whole_text import SPACE_MARK
from cluster.errors import UserError
from model.files import named
from model.inside import inside, plain_name

NEVER = -1e6  # Unigram's score of what no text may match

TEMPLATE = """\
{%- set turn = namespace(allowed=['system', 'user']) -%}
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in turn.allowed -%}
{{- raise_exception('Here comes ' + turn.allowed | join(' or ') + ', not ' + message['role']) -}}
{%- endif -%}
{%- set turn.allowed = ['assistant'] if message['role'] == 'user' else ['user'] -%}
{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


# -- out -----------------------------------------------------------------------------------------------------


def export_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write a tokenizer's files into `folder`; returns what config.json and generation_config.json say of its ids."""
    info = tokenizer.info
    if "library" in info:
        for name, text in kept_files(info).items():
            inside(folder, name).write_text(text, encoding="utf-8")
        if info["library"] == "whole-text":
            (folder / "tokenizer.model").write_bytes(tokenizer.model)
        ids = {f"{name}_token_id": i for name, i in info["ids"].items()}
        return ids, json.loads(info["files"].get("generation_config.json", "{}")) or ids
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    (folder / "tokenizer.json").write_text(
        json.dumps(as_huggingface(tokenizer), ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "pad_token": PAD,
        "additional_special_tokens": list(SPECIAL),
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    return ids, ids | {"eos_token_id": list(tokenizer.stop_ids)}


def kept_files(info: dict[str, Any]) -> dict[str, str]:
    """What goes back as it came, by the names of the files.

    Raises:
        UserError: our tokenizer.json names a file that no import keeps, or has no text for it.
    """
    files = info.get("files", {})
    if not isinstance(files, dict):
        raise UserError("tokenizer.json: `files` must be an object of names and texts.")
    for name, text in files.items():
        if plain_name(name, "tokenizer.json") not in KEPT or not isinstance(text, str):
            raise UserError(f"tokenizer.json names {name[:80]!r}, which is no text file of a tokenizer's.")
    return files


def as_huggingface(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer.json of a tokenizer that was trained here."""
    processor: Any = tokenizer.processor
    pieces = [processor.id_to_piece(i).replace(SPACE_MARK, " ") for i in range(tokenizer.vocab_size)]
    texts = [
        not (processor.is_control(i) or processor.is_byte(i) or processor.is_unknown(i)) for i in range(len(pieces))
    ]
    scores = [processor.get_score(i) if texts[i] else NEVER for i in range(len(pieces))]
    if tokenizer.info["algorithm"] == "bpe":
        model = {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNK,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": merges({piece: scores[i] for i, piece in enumerate(pieces) if texts[i]}),
        }
    else:
        vocab = [[piece, score] for piece, score in zip(pieces, scores, strict=True)]
        model = {"type": "Unigram", "unk_id": tokenizer.unk_id, "vocab": vocab, "byte_fallback": True}
    split = [f"{SPACE_MARK}|[^\\n{SPACE_MARK}]*\\n+|[^\\n{SPACE_MARK}]+"]  # in lines, as codecs.SentencePiece
    if model["type"] == "Unigram":
        # Beside a character without a piece, the text "<|user|>" as one token would score best of all ways.
        alphabet = sorted({c for i, piece in enumerate(pieces) if texts[i] for c in piece})
        split.append("[^" + "".join(f"\\x{{{ord(c):X}}}" for c in alphabet) + "]")
    start = {"SpecialToken": {"id": BOS, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": pieces[i],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i in range(len(pieces))
            if processor.is_control(i) or processor.is_unknown(i)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
                for regex in split
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, first],
            "pair": [start, first, second],
            "special_tokens": {BOS: {"id": BOS, "ids": [tokenizer.bos_id], "tokens": [BOS]}},
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": model,
    }


def merges(scores: dict[str, float]) -> list[list[str]]:
    """BPE's merges from pieces and their scores: every way to make a piece of two, the best piece first.

    sentencepiece ranks a merge by the piece it makes and takes the leftmost of equals; a list of merges ranks each way
    apart. Where two ways to one piece P overlap in a text, `P[:s] P[s:] P[:s]`, P has the period s: then the way that
    begins further left must come first, so the cuts at a period do. (In a run of one thing, such as spaces, both cuts
    are periods; there the longer part is on the left, as the leftmost merges have left it.)
    """
    found: list[list[str]] = []
    for piece in sorted(scores, key=lambda p: -scores[p]):
        cuts = [s for s in range(1, len(piece)) if piece[:s] in scores and piece[s:] in scores]
        cuts.sort(key=lambda s: (not piece.startswith(piece[s:]), -s))
        found += [[piece[:s], piece[s:]] for s in cuts]
    return found


# -- in ------------------------------------------------------------------------------------------------------


def import_tokenizer(source: Path, target: Path, rows: int) -> str | None:
    """Write ours (tokenizer.model, tokenizer.json) from a Hugging Face folder; returns its kind, None if it has none.

    Args:
        rows: of the model's embedding.

    Raises:
        ValueError: the tokenizer has more ids than that, or its only files are of a kind that isn't read.
    """
    with named(source / "tokenizer.json"):
        model, info = read_tokenizer(source)
        if info is None:
            return None
        tokenizer = Tokenizer.from_bytes(model, info)
    if tokenizer.vocab_size > rows:
        raise UserError(f"{source}: the tokenizer has {tokenizer.vocab_size} ids, the model only {rows}.")
    beyond = [i for i in tokenizer.stop_ids if not 0 <= i < rows]
    if beyond:
        raise UserError(
            f"{source}: eos_token_id = {beyond[0]} in generation_config.json or config.json is none of the model's "
            f"{rows} tokens, so that no text would ever end: put the right one there."
        )
    with named(source / "tokenizer.json"):
        tokenizer.save(target)
    kinds = {"whole-text": "sentencepiece", "tokenizers": "tokenizer.json (runs with the package tokenizers)"}
    return kinds.get(info.get("library", ""), "sentencepiece, trained by tokenmill")
