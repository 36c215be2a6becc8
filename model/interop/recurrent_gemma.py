"""RecurrentGemma (Botev et al. 2024, arXiv 2404.07839), Griffin's shape (arXiv 2402.19427).

Two recurrent blocks, then attention in a window with half of its channels turned; biases everywhere but in queries,
keys and values.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from model.config import ModelConfig
from model.interop.family import Family
from model.interop.keys import Always, Key, Nullable, Only, Ours, Theirs, Unsupported, value
from model.interop.layers import shortest
from model.interop.mamba2 import ENDLESS
from model.interop.parts import attention, ends, feed_forward
from model.interop.rope import Rope
from model.interop.weights import Pair, same

MIXERS = {"recurrent": "rg_lru", "attention": "window"}
TANH = ("gelu_pytorch_tanh", "gelu_new")


@dataclass(frozen=True)
class Layers:
    """`block_types`, repeated over depth."""

    def read(self, theirs: Theirs) -> Ours:
        given = theirs.get("block_types", ["recurrent", "recurrent", "attention"])
        for number, name in enumerate(given):
            if name not in MIXERS:
                raise Unsupported.key(f"block_types[{number}]", name, f"supported are {', '.join(MIXERS)}")
        depth = theirs["num_hidden_layers"]
        return {"pattern": shortest([MIXERS[given[i % len(given)]] for i in range(depth)])}

    def write(self, config: ModelConfig) -> Theirs:
        names = {mixer: name for name, mixer in MIXERS.items()}
        return {"block_types": [names.get(mixer, mixer) for mixer in config.pattern]}


@dataclass(frozen=True)
class HalfWidth:
    """The key is the width of both matrices that a gated feed-forward begins with."""

    def read(self, theirs: Theirs) -> Ours:
        return {"d_ff": theirs.get("intermediate_size", 7680) // 2}

    def write(self, config: ModelConfig) -> Theirs:
        return {"intermediate_size": 2 * config.ff_width}


@dataclass(frozen=True)
class RoundedScale:
    """The embeddings' scale is the root of the width as a bfloat16, in a model of any precision."""

    def read(self, theirs: Theirs) -> Ours:
        width = theirs["hidden_size"]
        return {"embedding_scale": float(torch.tensor(width**0.5, dtype=torch.bfloat16))}

    def write(self, config: ModelConfig) -> Theirs:
        return {}


@dataclass(frozen=True)
class Blocks:
    """The gates have as many blocks as attention has heads."""

    def read(self, theirs: Theirs) -> Ours:
        return {"rg_lru.n_blocks": theirs.get("num_attention_heads", 10)}

    def write(self, config: ModelConfig) -> Theirs:
        return {}


@dataclass(frozen=True)
class LruWidth:
    def read(self, theirs: Theirs) -> Ours:
        return {"rg_lru.width": theirs.get("lru_width") or theirs["hidden_size"]}

    def write(self, config: ModelConfig) -> Theirs:
        return {"lru_width": config.rg_lru.width or config.d_model}


def weights(c: ModelConfig) -> Iterator[Pair]:
    yield from ends(c, norm="model.final_norm")
    for i, kind in enumerate(c.layer_mixers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        yield same(f"{ours}.mixer_norm.weight", f"{theirs}.temporal_pre_norm.weight")
        if kind == "rg_lru":
            for name in ("linear_y", "linear_x", "conv_1d", "linear_out"):
                for x in ("weight", "bias"):
                    yield same(f"{ours}.mixer.{name}.{x}", f"{theirs}.temporal_block.{name}.{x}")
            gates = [f"{gate}_gate_{x}" for gate in ("input", "recurrent") for x in ("weight", "bias")]
            for name in ("recurrent_param", *gates):
                yield same(f"{ours}.mixer.rg_lru.{name}", f"{theirs}.temporal_block.rg_lru.{name}")
        else:
            yield from attention(c, f"{ours}.mixer", f"{theirs}.temporal_block")
        yield same(f"{ours}.ff_norm.weight", f"{theirs}.channel_pre_norm.weight")
        yield from feed_forward(c, f"{ours}.feed_forward", f"{theirs}.mlp_block")


@dataclass(frozen=True)
class QkvBias:
    def read(self, theirs: Theirs) -> Ours:
        return {"qkv_bias": bool(theirs.get("attention_bias", False))}

    def write(self, config: ModelConfig) -> Theirs:
        return {"attention_bias": value(config, "qkv_bias")}


FAMILIES = (
    Family(
        "RecurrentGemmaForCausalLM",
        "recurrent_gemma",
        (
            Key("vocab_size", "vocab_size", 256_000),
            Key("hidden_size", "d_model", 2560),
            Key("num_hidden_layers", "n_layers", 26),
            Key("num_attention_heads", "n_heads", 10),
            Key("num_key_value_heads", "n_kv_heads", None),
            Key("rms_norm_eps", "norm_eps", 1e-6),
            Key("attention_window_size", "window", 2048),
            Key("conv1d_width", "rg_lru.conv_width", 4),
            Key("tie_word_embeddings", "tie_embeddings", True),
            Nullable("logits_soft_cap", "logit_softcap", 30.0),
            LruWidth(),
            Blocks(),
            HalfWidth(),
            QkvBias(),
            RoundedScale(),
            Layers(),
            Rope(fraction=0.5),
            Only("hidden_activation", TANH, TANH[0]),
            Always(norm="rmsnorm_plus_one", feed_forward="geglu", bias=True, max_seq_len=ENDLESS),
        ),
        weights,
    ),
)
