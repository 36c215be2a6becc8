"""Llama 1 to 3, and Mistral, which is Llama with a window.

Touvron et al. 2023, arXiv 2302.13971; Grattafiori et al. 2024, arXiv 2407.21783; Jiang et al. 2023, arXiv 2310.06825.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from model.config import ModelConfig
from model.interop.family import Family
from model.interop.keys import Always, Key, Only, Ours, Theirs, value
from model.interop.layers import SlidingWindow
from model.interop.parts import attention, ends, feed_forward, sizes
from model.interop.rope import Rope
from model.interop.weights import Pair, same


@dataclass(frozen=True)
class AttentionBias:
    """One key for the biases of queries, keys, values and the output."""

    def read(self, theirs: Theirs) -> Ours:
        bias = bool(theirs.get("attention_bias", False))
        return {"qkv_bias": bias, "out_bias": bias}

    def write(self, config: ModelConfig) -> Theirs:
        return {"attention_bias": value(config, "qkv_bias")}


def weights(c: ModelConfig) -> Iterator[Pair]:
    yield from ends(c)
    for i in range(c.n_layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        yield same(f"{ours}.mixer_norm.weight", f"{theirs}.input_layernorm.weight")
        yield from attention(c, f"{ours}.mixer", f"{theirs}.self_attn")
        yield same(f"{ours}.ff_norm.weight", f"{theirs}.post_attention_layernorm.weight")
        yield from feed_forward(c, f"{ours}.feed_forward", f"{theirs}.mlp")


FAMILIES = (
    Family(
        "LlamaForCausalLM",
        "llama",
        (
            *sizes(32_000, 4096, 11_008, 32, 32, 2048, 1e-6),
            Key("num_key_value_heads", "n_kv_heads", None),
            Key("head_dim", "d_head", None),
            Key("tie_word_embeddings", "tie_embeddings", False),
            Key("mlp_bias", "ff_bias", False),
            AttentionBias(),
            Rope(),
            Only("hidden_act", ("silu",), "silu"),
            Always(norm="rmsnorm", feed_forward="swiglu"),
        ),
        weights,
    ),
    Family(
        "MistralForCausalLM",
        "mistral",
        (
            *sizes(32_000, 4096, 14_336, 32, 32, 4096 * 32, 1e-6),
            Key("num_key_value_heads", "n_kv_heads", 8),
            Key("head_dim", "d_head", None),
            Key("tie_word_embeddings", "tie_embeddings", False),
            SlidingWindow(4096),
            Rope(),
            Only("hidden_act", ("silu",), "silu"),
            Always(norm="rmsnorm", feed_forward="swiglu"),
        ),
        weights,
    ),
)
