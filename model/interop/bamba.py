"""Bamba (IBM 2024): Mamba-2 layers and a few of attention, half of whose channels RoPE turns; SwiGLU in each layer."""

from collections.abc import Iterator
from dataclasses import dataclass

from model.config import ModelConfig
from model.interop.family import Family
from model.interop.keys import Always, Key, Only, Ours, Theirs, Unsupported
from model.interop.layers import shortest
from model.interop.mamba2 import StepLimit, mixer
from model.interop.parts import attention, ends, feed_forward, sizes
from model.interop.rope import Rope
from model.interop.weights import Pair, same


@dataclass(frozen=True)
class Layers:
    """`attn_layer_indices`; all others are Mamba-2's."""

    def read(self, theirs: Theirs) -> Ours:
        attends = set(theirs.get("attn_layer_indices") or ())
        kinds = ["attention" if i in attends else "mamba2" for i in range(theirs["num_hidden_layers"])]
        return {"pattern": shortest(kinds)}

    def write(self, config: ModelConfig) -> Theirs:
        return {"attn_layer_indices": [i for i, kind in enumerate(config.layer_mixers) if kind == "attention"]}


@dataclass(frozen=True)
class Heads:
    """As Mamba-2's, where the size "auto" follows from the number."""

    def read(self, theirs: Theirs) -> Ours:
        inner = theirs.get("mamba_expand", 2) * theirs["hidden_size"]
        heads, size = theirs.get("mamba_n_heads", 128), theirs.get("mamba_d_head", "auto")
        size = inner // heads if size == "auto" else size
        if heads * size != inner:
            raise Unsupported.key(
                "mamba_n_heads", heads, f"mamba_expand * hidden_size / mamba_d_head = {inner / size:g}"
            )
        return {"mamba2.head_dim": size}

    def write(self, config: ModelConfig) -> Theirs:
        m = config.mamba2
        return {"mamba_n_heads": m.expand * config.d_model // m.head_dim, "mamba_d_head": m.head_dim}


def weights(c: ModelConfig) -> Iterator[Pair]:
    yield from ends(c, norm="model.final_layernorm")
    for i, kind in enumerate(c.layer_mixers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        yield same(f"{ours}.mixer_norm.weight", f"{theirs}.input_layernorm.weight")
        if kind == "mamba2":
            yield from mixer(c, f"{ours}.mixer", f"{theirs}.mamba")
        else:
            yield from attention(c, f"{ours}.mixer", f"{theirs}.self_attn")
        yield same(f"{ours}.ff_norm.weight", f"{theirs}.pre_ff_layernorm.weight")
        yield from feed_forward(c, f"{ours}.feed_forward", f"{theirs}.feed_forward")


FAMILIES = (
    Family(
        "BambaForCausalLM",
        "bamba",
        (
            *sizes(128_000, 4096, 14_336, 32, 32, 262_144, 1e-5),
            Key("num_key_value_heads", "n_kv_heads", 8),
            Key("tie_word_embeddings", "tie_embeddings", False),
            Key("mamba_d_state", "mamba2.d_state", 256),
            Key("mamba_expand", "mamba2.expand", 2),
            Key("mamba_n_groups", "mamba2.n_groups", 1),
            Key("mamba_d_conv", "mamba2.conv_width", 4),
            Key("mamba_conv_bias", "mamba2.conv_bias", True),
            Heads(),
            Layers(),
            StepLimit(),
            Rope(fraction=0.5),
            Key("mlp_bias", "ff_bias", False),
            Only("attention_bias", (False,), False),
            Only("mamba_proj_bias", (False,), False),
            Only("hidden_act", ("silu",), "silu"),
            Always(norm="rmsnorm", feed_forward="swiglu"),
        ),
        weights,
    ),
)
