"""What is in a GGUF file: opened, and refused by name where a model of ours has no place for it.

A key or a tensor that nobody asks for changes what the file's model computes: a rope factor, a bias, a window. So each
is either read (READ), or says what is so anyway (NEUTRAL), or is about the file and not the model (ABOUT).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.errors import Missing, UserError
from cluster.interop.gguf_header import check_header
from model.files import broken, given, regular, seems

ARCHITECTURE = "llama"
READ = {  # of the architecture: the kind of value
    "vocab_size": int,
    "context_length": int,
    "embedding_length": int,
    "block_count": int,
    "feed_forward_length": int,
    "attention.head_count": int,
    "attention.head_count_kv": int,
    "attention.key_length": int,
    "attention.value_length": int,
    "attention.layer_norm_rms_epsilon": float,
    "rope.freq_base": float,
    "rope.dimension_count": int,
}
NEUTRAL: dict[str, tuple[Any, ...]] = {  # of the architecture: values that change nothing
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0, 1),
    "rope.scaling.attn_factor": (0, 1),
    "rope.scaling.finetuned": (False, True),
    "rope.scaling.original_context_length": (0,),
    "rope.scale_linear": (0, 1),
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "use_parallel_residual": (False,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "tensor_data_layout": ("Meta AI original pth",),
}
TOKENIZER = {  # of the tokenizer: read, or about tokens that only other programs use
    *("model", "tokens", "scores", "token_type", "bos_token_id", "eos_token_id", "unknown_token_id"),
    *("padding_token_id", "eot_token_id", "eom_token_id", "add_bos_token", "add_space_prefix"),
    *("remove_extra_whitespaces", "precompiled_charsmap", "pre", "token_type_count", "merges"),
    *("seperator_token_id", "separator_token_id", "cls_token_id", "mask_token_id"),
    *(f"{kind}_token_id" for kind in ("prefix", "suffix", "middle")),
    *(f"fim_{kind}_token_id" for kind in ("pre", "suf", "mid", "pad", "rep", "sep")),
}
ABOUT = ("general.", "GGUF.", "quantize.", "tokenizer.chat_template", "tokenizer.huggingface.json")


def open_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the file's keys, its tensors by name).

    Raises:
        Missing: there is no such file.
        UserError: it is something else, or was cut off.
    """
    import gguf

    if not given(path):
        raise Missing(f"{path} is not there.")
    regular(path, "a GGUF file")
    try:
        check_header(path)
        reader = gguf.GGUFReader(path)
        if sum(t.n_bytes for t in reader.tensors) > len(reader.data):
            raise ValueError("its tensors have more bytes than the file: they lie one over another")
        return {name: field.contents() for name, field in reader.fields.items()}, {t.name: t for t in reader.tensors}
    except Exception as error:  # a parser of its own, which meets broken bytes with whatever they lead to
        if isinstance(error, PermissionError):
            raise
        raise broken(path, "a GGUF file", "" if seems(path)[0].startswith("a Git") else error) from None


def check_keys(path: Path, keys: dict[str, Any]) -> None:
    """Raises UserError for the first key that is neither read nor without effect, by its name and value."""
    architecture = keys.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise UserError(f"{path}: general.architecture = {architecture!r}: supported is {ARCHITECTURE!r}.")
    if keys.get("general.type", "model") != "model":
        raise UserError(f"{path}: general.type = {keys['general.type']!r}: supported is a whole model.")
    for name, value in keys.items():
        prefix, _, rest = name.partition(".")
        if prefix == ARCHITECTURE and rest in READ:
            fits = isinstance(value, int | float if READ[rest] is float else int) and not isinstance(value, bool)
            if not fits:
                raise _refused(path, name, value, "it must be one number, the same in all layers")
        elif prefix == ARCHITECTURE and rest in NEUTRAL:
            if value not in NEUTRAL[rest]:
                allowed = " or ".join(map(repr, NEUTRAL[rest]))
                raise _refused(path, name, value, f"supported is {allowed}, or no such key")
        elif name.startswith("tokenizer.ggml."):
            key = name.removeprefix("tokenizer.ggml.")
            off = key in ("add_eos_token", "add_sep_token") and value is False
            if not off and key not in TOKENIZER:
                raise _refused(path, name, value, "nothing here does what it asks for")
            if key.endswith("_token_id") and type(value) is not int:
                raise _refused(path, name, value, "it must be a number")
            if key in ("add_bos_token", "add_space_prefix", "remove_extra_whitespaces") and type(value) is not bool:
                raise _refused(path, name, value, "it must be true or false")
        elif prefix == "split":
            if keys.get("split.count", 1) not in (0, 1):
                raise _refused(path, "split.count", keys["split.count"], "join the parts: llama-gguf-split --merge")
        elif not name.startswith(ABOUT):
            raise _refused(path, name, value, "nothing here reads that key, and it may change what is computed")


def check_tensors(path: Path, there: Iterable[str], read: Iterable[str]) -> None:
    """Raises UserError, with a name, unless the tensors in the file are just those that are read."""
    there, read = set(there), set(read)
    if missing := sorted(read - there):
        raise UserError(f"{path} lacks {missing[0]}, which its metadata imply.")
    if left := sorted(there - read):
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise UserError(f"{path} has the tensor {left[0]}{more}, which a Llama without biases or factors hasn't.")


def _refused(path: Path, name: str, value: Any, why: str) -> UserError:
    return UserError(f"{path}: {name} = {str(value)[:80]} can't be expressed here: {why}.")
