"""A model as one GGUF file, which llama.cpp and its kin read; a Llama's is read back, too. By the library `gguf`.

Which architectures are written is in gguf_architectures.py. Matrices are F32, F16, Q8_0, Q5_0 or Q4_0 (blocks of 32
values with a scale, by the library's own quantiser, which has none for K-quants); norms and routers stay F32, and so
do matrices whose rows aren't whole blocks. Read back, F32 and F16 keep their bits, and quantized blocks become the
float32 numbers that they stand for.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.data.tokenizer.foreign import own_info, with_turns
from cluster.errors import UserError
from cluster.interop.gguf_architectures import Architecture, architecture_for, tensors
from cluster.interop.gguf_contents import ARCHITECTURE, check_keys, check_tensors, open_gguf
from cluster.interop.gguf_tokenizer import describe_tokenizer, sentencepiece_model, tokenizer_info
from cluster.interop.wide import plain_weights

if TYPE_CHECKING:
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.config import ModelConfig
    from model.interop.convert import Converted

ENDS, ROUTER = ("token_embd.weight", "output.weight"), "ffn_gate_inp"
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
    architecture = check(config, tokenizer)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    types, files = gguf.GGMLQuantizationType, gguf.LlamaFileType
    known = {
        "f32": (types.F32, files.ALL_F32),
        "f16": (types.F16, files.MOSTLY_F16),
        "q8_0": (types.Q8_0, files.MOSTLY_Q8_0),
        "q5_0": (types.Q5_0, files.MOSTLY_Q5_0),
        "q4_0": (types.Q4_0, files.MOSTLY_Q4_0),
    }
    if precision not in known:
        raise UserError(f"--precision {precision!r} is not one of {', '.join(known)}.")
    matrix, kind = known[precision]
    try:
        writer = gguf.GGUFWriter(part, architecture.name)
        describe(writer, config, target.stem)
        architecture.describe(writer, config)
        writer.add_file_type(kind)
        describe_tokenizer(writer, tokenizer)
        with plain_weights(source) as plain:
            for name, tensor in tensors(plain, config, architecture):
                values = tensor.contiguous().numpy()
                as_type = matrix
                if name in ENDS and matrix in (types.Q4_0, types.Q5_0):
                    as_type = types.Q8_0  # as llama.cpp's own files: what is looked up and drawn from needs more
                if tensor.ndim < 2 or ROUTER in name or tensor.shape[-1] % gguf.GGML_QUANT_SIZES[as_type][0]:
                    as_type = types.F32
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


def check(config: ModelConfig, tokenizer: Tokenizer) -> Architecture:
    """The architecture that holds the model; UserError for another, or another tokenizer than BPE trained here."""
    architecture = architecture_for(config)
    if tokenizer.info.get("algorithm") != "bpe":
        what = tokenizer.info.get("library") or tokenizer.info["algorithm"]
        raise UserError(f"A GGUF file is written with BPE tokenizers that were trained here; this one is {what!r}.")
    return architecture


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


# -- in ------------------------------------------------------------------------------------------------------


def import_gguf(source: Path, target: Path) -> Converted:
    """Write a model's folder of ours from a GGUF file.

    Raises:
        ImportError: the library is missing; says how to install it.
        UserError: the file is broken, or holds a key or a tensor that a Llama of ours has no place for.
    """
    from model.checkpoint import CONFIG, WEIGHTS
    from model.interop.convert import Converted
    from model.tensors import save_tensors

    config, tokenizer, tensors = read_gguf(source)
    weights = read_weights(source, tensors, config)
    target.mkdir(parents=True, exist_ok=True)
    save_tensors(weights, target / WEIGHTS)
    (target / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")
    tokenizer.save(target)
    dtype = str(weights["embedding.weight"].dtype).removeprefix("torch.")
    return Converted("llama (GGUF)", config, sum(w.numel() for w in weights.values()), dtype, 1)


def read_gguf(source: Path) -> tuple[ModelConfig, Tokenizer, dict[str, Any]]:
    """(config, tokenizer, tensors as the library has them) of a GGUF file; no weight is read. Errors: `import_gguf`."""
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.sizes import check_sizes

    load_gguf()
    given, tensors = open_gguf(source)
    check_keys(source, given)
    kind = given.get("tokenizer.ggml.model")
    if kind != "llama":
        raise UserError(f"{source}: tokenizer.ggml.model = {kind!r}; supported is 'llama', a sentencepiece tokenizer.")
    if (blocks := given.get(f"{ARCHITECTURE}.block_count", 1)) > len(tensors):
        raise UserError(f"{source}: {ARCHITECTURE}.block_count = {blocks}, but the file has {len(tensors)} tensors.")
    try:
        config = read_description(source, given, tied="output.weight" not in tensors)
    except UserError as error:
        raise UserError(f"{source}: {str(error).removeprefix(f'{source}: ')}") from None
    try:
        check_sizes(config, len(tensors), source.stat().st_size)
    except UserError as error:
        raise UserError(f"{source} {error}.") from None
    check_tensors(source, tensors, their_names(config))
    model = sentencepiece_model(source, given)
    tokenizer = Tokenizer.from_bytes(model, own_info(model) or with_turns(model, tokenizer_info(given)))
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{source}: the tokenizer has {tokenizer.vocab_size} ids, the model only {config.vocab_size}.")
    return config, tokenizer, tensors


def their_names(config: ModelConfig) -> list[str]:
    """Of all tensors of such a model."""
    parts = ("attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", *MATRICES.values())
    ends = ("token_embd", "output_norm", *(() if config.tie_embeddings else ("output",)))
    return [f"{name}.weight" for name in (*ends, *(f"blk.{i}.{p}" for i in range(config.n_layers) for p in parts))]


def read_weights(source: Path, tensors: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Ours by name. Raises UserError for a tensor of a kind that isn't read, or of another shape than the keys say."""
    import torch

    from model.count import meta_model

    gguf = load_gguf()
    try:
        shapes = {name: w.shape for name, w in meta_model(config).state_dict().items()}
    except UserError as error:
        raise UserError(f"{source}: {error}.") from None

    def tensor(name: str) -> torch.Tensor:
        t = tensors[name]
        whole = t.tensor_type in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
        try:
            values = t.data if whole else gguf.quants.dequantize(t.data, t.tensor_type)
        except NotImplementedError:
            raise UserError(f"{source}: {name} is of the type {t.tensor_type.name}, which isn't read.") from None
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
    for name, expected in shapes.items():
        if weights[name].shape != expected:
            found = tuple(weights[name].shape)
            raise UserError(f"{source}: {name} is {found} in the file, but its keys imply {tuple(expected)}.")
    return weights


def read_description(source: Path, given: dict[str, Any], tied: bool) -> ModelConfig:
    """The keys of the architecture as our config. Raises UserError for one that is missing or can't be expressed."""
    from model.config import ModelConfig

    def key(name: str, default: Any = None) -> Any:
        found = given.get(f"{ARCHITECTURE}.{name}", default)
        if found is None:
            raise UserError(f"{source} has no {ARCHITECTURE}.{name}.")
        return found

    heads, width = key("attention.head_count"), key("embedding_length")
    head = key("attention.key_length", width // max(1, heads))
    if key("rope.dimension_count", head) != head or key("attention.value_length", head) != head:
        raise UserError(f"{source}: rope.dimension_count or attention.value_length differs from the head's size.")
    tokens = given.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise UserError(f"{source} has no tokenizer.ggml.tokens.")
    return ModelConfig(
        vocab_size=key("vocab_size", len(tokens)),
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
