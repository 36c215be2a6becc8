"""LFM2 (Liquid AI 2025): gated short convolutions and a few layers of attention with QK-norm; SwiGLU in each layer."""

from collections.abc import Iterator
from dataclasses import dataclass

from model.config import ModelConfig
from model.interop.family import Family
from model.interop.keys import Always, Key, Ours, Theirs, value
from model.interop.layers import LayerTypes
from model.interop.parts import attention, ends, feed_forward
from model.interop.rope import Rope
from model.interop.weights import Pair, same


@dataclass(frozen=True)
class Width:
    """`block_auto_adjust_ff_dim` takes two thirds of the width given, and rounds it up; we write the width itself."""

    def read(self, theirs: Theirs) -> Ours:
        width = theirs.get("block_ff_dim") or theirs.get("intermediate_size", 12_288)
        if theirs.get("block_auto_adjust_ff_dim", True):
            width = int(2 * width / 3)
            factor = theirs.get("block_ffn_dim_multiplier", 1.0)
            if factor is not None:
                multiple = theirs.get("block_multiple_of", 256)
                width = -(-int(factor * width) // multiple) * multiple
        return {"d_ff": width}

    def write(self, config: ModelConfig) -> Theirs:
        return {"intermediate_size": config.ff_width, "block_auto_adjust_ff_dim": False}


@dataclass(frozen=True)
class ConvBias:
    """One key for all biases of the convolution's layers."""

    def read(self, theirs: Theirs) -> Ours:
        return {"short_conv.bias": bool(theirs.get("conv_bias", False))}

    def write(self, config: ModelConfig) -> Theirs:
        return {"conv_bias": _conv_bias(config)}


def _conv_bias(c: ModelConfig) -> bool:
    return value(c, "bias") if c.short_conv.bias is None else c.short_conv.bias


@dataclass(frozen=True)
class Tied:
    """Older files call it `tie_embedding`."""

    def read(self, theirs: Theirs) -> Ours:
        return {"tie_embeddings": theirs.get("tie_embedding", theirs.get("tie_word_embeddings", True))}

    def write(self, config: ModelConfig) -> Theirs:
        return {"tie_word_embeddings": config.tie_embeddings}


def types(theirs: Theirs) -> list[str]:
    depth = theirs["num_hidden_layers"]
    named = theirs.get("full_attn_idxs")
    attends = range(depth) if named is None else set(named)
    return ["full_attention" if i in attends else "conv" for i in range(depth)]


def weights(c: ModelConfig) -> Iterator[Pair]:
    yield from ends(c, norm="model.embedding_norm")
    for i, kind in enumerate(c.layer_mixers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        yield same(f"{ours}.mixer_norm.weight", f"{theirs}.operator_norm.weight")
        if kind == "short_conv":
            for name in ("in_proj", "conv", "out_proj"):
                for x in ("weight", "bias") if _conv_bias(c) else ("weight",):
                    yield same(f"{ours}.mixer.{name}.{x}", f"{theirs}.conv.{name}.{x}")
        else:
            yield from attention(c, f"{ours}.mixer", f"{theirs}.self_attn", out="out_proj", norms="{}_layernorm")
        yield same(f"{ours}.ff_norm.weight", f"{theirs}.ffn_norm.weight")
        yield from feed_forward(c, f"{ours}.feed_forward", f"{theirs}.feed_forward", ("w1", "w3", "w2"))


FAMILIES = (
    Family(
        "Lfm2ForCausalLM",
        "lfm2",
        (
            Key("vocab_size", "vocab_size", 65_536),
            Key("hidden_size", "d_model", 2560),
            Key("num_hidden_layers", "n_layers", 32),
            Key("num_attention_heads", "n_heads", 32),
            Key("num_key_value_heads", "n_kv_heads", 8),
            Key("max_position_embeddings", "max_seq_len", 128_000),
            Key("norm_eps", "norm_eps", 1e-5),
            Key("initializer_range", "init_std", 0.02),
            Key("conv_L_cache", "short_conv.conv_width", 3),
            Width(),
            ConvBias(),
            Tied(),
            LayerTypes({"full_attention": "attention", "conv": "short_conv"}, types),
            Rope(1_000_000.0),
            Always(norm="rmsnorm", feed_forward="swiglu", qk_norm=True),
        ),
        weights,
    ),
)
