"""A Llama-shaped model as one GGUF file, which llama.cpp and its kin read, and back; by the library `gguf`.

Its "llama" architecture turns RoPE's neighbours as we do, so queries and keys go out as they are. Matrices are F32, F16
or Q8_0 (blocks of 32 values with a scale, by the library's own quantiser); norms stay F32. Read back, F32 and F16 keep
their bits, and quantized blocks become the float32 numbers that they stand for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.data.tokenizer.exchange import TEMPLATE
from cluster.data.tokenizer.foreign import foreign_info, own_info
from cluster.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.config import ModelConfig
    from model.interop.convert import Converted

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # token types, llama.cpp's and sentencepiece's
ARCHITECTURE = "llama"
MATRICES = {"out": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}


# -- out -----------------------------------------------------------------------------------------------------


def export_gguf(source: Path, target: Path, precision: str = "f16") -> int:
    """Write a model's folder of ours as one file; returns its size in bytes.

    Raises:
        ImportError: the library is missing; says how to install it.
        ValueError: `target` is there, or the model or its tokenizer has no place in such a file.
    """
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.checkpoint import load_config

    gguf = load_gguf()
    if target.exists():
        raise UserError(f"{target} is there already.")
    config, tokenizer = load_config(source), Tokenizer(source)
    check(config, tokenizer)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    types, files = gguf.GGMLQuantizationType, gguf.LlamaFileType
    known = {
        "f32": (types.F32, files.ALL_F32),
        "f16": (types.F16, files.MOSTLY_F16),
        "q8_0": (types.Q8_0, files.MOSTLY_Q8_0),
    }
    if precision not in known:
        raise UserError(f"--precision {precision!r} is not one of {', '.join(known)}.")
    matrix, kind = known[precision]
    block = gguf.GGML_QUANT_SIZES[matrix][0]
    try:
        writer = gguf.GGUFWriter(part, ARCHITECTURE)
        describe(writer, config, target.stem)
        writer.add_file_type(kind)
        describe_tokenizer(writer, tokenizer)
        for name, values in tensors(source, config):
            as_type = matrix if values.ndim == 2 and values.shape[1] % block == 0 else types.F32
            writer.add_tensor(name, gguf.quants.quantize(values, as_type), raw_dtype=as_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)
    return target.stat().st_size


def load_gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            "GGUF files are written by the package `gguf`, which isn't installed. Install it: "
            "pip install 'gguf>=0.17,<1' (or tokenmill's extra [gguf])."
        ) from error
    return gguf


def check(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """ValueError unless it is a Llama without stretched positions, with a BPE tokenizer that was trained here."""
    from model.interop.family import family_named
    from model.interop.keys import value

    misfits = family_named("LlamaForCausalLM").misfits(config)
    misfits += [f"{name} = true" for name in ("qkv_bias", "out_bias", "ff_bias") if value(config, name)]
    if config.rope_scaling is not None:
        misfits.append(f"rope_scaling.kind = {config.rope_scaling.kind!r}")
    if misfits:
        raise UserError(f"A GGUF file is written for Llama-shaped models; this doesn't fit: {'; '.join(misfits)}.")
    if tokenizer.info.get("algorithm") != "bpe":
        what = tokenizer.info.get("library") or tokenizer.info["algorithm"]
        raise UserError(f"A GGUF file is written with BPE tokenizers that were trained here; this one is {what!r}.")


def describe(writer: Any, config: ModelConfig, name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ff_width)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.rope_dim)
    writer.add_vocab_size(config.vocab_size)


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


def tensors(source: Path, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """llama.cpp's names and float32 values."""
    from model.interop.folder import Weights

    q, kv = config.n_heads * config.head_dim, config.kv_heads * config.head_dim
    with Weights(source) as weights:

        def of(name: str) -> Any:
            return weights[name].float().numpy()

        yield "token_embd.weight", of("embedding.weight")
        yield "output_norm.weight", of("norm.weight")
        if not config.tie_embeddings:
            yield "output.weight", of("head.weight")
        for i in range(config.n_layers):
            ours, theirs = f"blocks.{i}", f"blk.{i}"
            yield f"{theirs}.attn_norm.weight", of(f"{ours}.mixer_norm.weight")
            yield f"{theirs}.ffn_norm.weight", of(f"{ours}.ff_norm.weight")
            rows = of(f"{ours}.mixer.qkv.weight")
            for x, part in (("q", rows[:q]), ("k", rows[q : q + kv]), ("v", rows[q + kv :])):
                yield f"{theirs}.attn_{x}.weight", part
            for name, other in MATRICES.items():
                where = "mixer" if name == "out" else "feed_forward"
                yield f"{theirs}.{other}.weight", of(f"{ours}.{where}.{name}.weight")


# -- in ------------------------------------------------------------------------------------------------------


def import_gguf(source: Path, target: Path) -> Converted:
    """Write a model's folder of ours from a GGUF file.

    Raises:
        ImportError: the library is missing; says how to install it.
        ValueError: another architecture than Llama, stretched positions, or another tokenizer than sentencepiece's.
    """
    import torch
    from safetensors.torch import save_file

    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.checkpoint import CONFIG, WEIGHTS
    from model.interop.convert import Converted

    gguf = load_gguf()
    reader = gguf.GGUFReader(source)
    given = {name: field.contents() for name, field in reader.fields.items()}
    kind = given.get("tokenizer.ggml.model")
    if kind != "llama":
        raise UserError(f"{source}: tokenizer.ggml.model = {kind!r}; supported is 'llama', a sentencepiece tokenizer.")
    tensors = {t.name: t for t in reader.tensors}
    config = read_description(given, tied="output.weight" not in tensors)

    def tensor(name: str) -> torch.Tensor:
        if name not in tensors:
            raise UserError(f"{source} lacks {name}, which its metadata imply.")
        t = tensors[name]
        whole = t.tensor_type in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
        values = t.data if whole else gguf.quants.dequantize(t.data, t.tensor_type)
        return torch.from_numpy(values.copy()).reshape([int(n) for n in reversed(t.shape)])

    weights = {"embedding.weight": tensor("token_embd.weight"), "norm.weight": tensor("output_norm.weight")}
    if not config.tie_embeddings:
        weights["head.weight"] = tensor("output.weight")
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"blk.{i}"
        weights[f"{ours}.mixer_norm.weight"] = tensor(f"{theirs}.attn_norm.weight")
        weights[f"{ours}.ff_norm.weight"] = tensor(f"{theirs}.ffn_norm.weight")
        weights[f"{ours}.mixer.qkv.weight"] = torch.cat([tensor(f"{theirs}.attn_{x}.weight") for x in "qkv"])
        for name, other in MATRICES.items():
            where = "mixer" if name == "out" else "feed_forward"
            weights[f"{ours}.{where}.{name}.weight"] = tensor(f"{theirs}.{other}.weight")
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / WEIGHTS)
    (target / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")
    model = sentencepiece_model(given)
    Tokenizer.from_bytes(model, own_info(model) or tokenizer_info(given)).save(target)
    dtype = str(weights["embedding.weight"].dtype).removeprefix("torch.")
    return Converted("llama (GGUF)", config, sum(w.numel() for w in weights.values()), dtype, 1)


def read_description(given: dict[str, Any], tied: bool) -> ModelConfig:
    """Raises ValueError for another architecture, or positions that are stretched."""
    from model.config import ModelConfig

    architecture = given.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise UserError(f"general.architecture = {architecture!r}: supported is {ARCHITECTURE!r}.")

    def key(name: str, default: Any = None) -> Any:
        found = given.get(f"{ARCHITECTURE}.{name}", default)
        if found is None:
            raise UserError(f"The file has no {ARCHITECTURE}.{name}.")
        return found

    if key("rope.scaling.type", "none") != "none" or key("expert_count", 0):
        raise UserError("rope.scaling.type or expert_count is set: supported are dense models without stretched RoPE.")
    heads, width = key("attention.head_count"), key("embedding_length")
    head = key("attention.key_length", width // heads)
    if key("rope.dimension_count", head) != head or key("attention.value_length", head) != head:
        raise UserError("rope.dimension_count or attention.value_length differs from the head's size.")
    return ModelConfig(
        vocab_size=len(given["tokenizer.ggml.tokens"]) if "llama.vocab_size" not in given else key("vocab_size"),
        d_model=width,
        n_layers=key("block_count"),
        n_heads=heads,
        n_kv_heads=key("attention.head_count_kv", heads),
        d_head=head,
        d_ff=key("feed_forward_length"),
        norm_eps=key("attention.layer_norm_rms_epsilon"),
        rope_theta=key("rope.freq_base", 10_000.0),
        max_seq_len=key("context_length"),
        tie_embeddings=tied,
    )


def sentencepiece_model(given: dict[str, Any]) -> bytes:
    """The tokenizer as a sentencepiece model again."""
    from sentencepiece import sentencepiece_model_pb2 as sp

    proto = sp.ModelProto()  # type: ignore[attr-defined]
    names = ("tokens", "scores", "token_type")
    for piece, score, kind in zip(*(given[f"tokenizer.ggml.{n}"] for n in names), strict=True):
        proto.pieces.add(piece=piece, score=score, type=kind)
    spec, ids = proto.trainer_spec, {n: given.get(f"tokenizer.ggml.{n}_token_id", -1) for n in LONG}
    spec.model_type, spec.vocab_size, spec.byte_fallback = spec.BPE, len(proto.pieces), True
    spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = (ids[n] for n in LONG)
    spec.unk_piece, spec.bos_piece, spec.eos_piece, spec.pad_piece = (
        proto.pieces[ids[n]].piece if ids[n] >= 0 else f"<{n}>" for n in LONG
    )
    normal = proto.normalizer_spec
    normal.name, normal.remove_extra_whitespaces = "identity", False
    normal.add_dummy_prefix = given.get("tokenizer.ggml.add_space_prefix", True)
    return proto.SerializeToString()


LONG = {"unknown": "unk", "bos": "bos", "eos": "eos", "padding": "pad"}  # llama.cpp's names of special tokens


def tokenizer_info(given: dict[str, Any]) -> dict[str, Any]:
    tokens, kinds = given["tokenizer.ggml.tokens"], given["tokenizer.ggml.token_type"]
    special = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == CONTROL}
    ids = {short: given.get(f"tokenizer.ggml.{long}_token_id") for long, short in LONG.items() if short != "unk"}
    adds = given.get("tokenizer.ggml.add_bos_token", True)
    return foreign_info("whole-text", special, {n: i for n, i in ids.items() if i is not None}, adds)
