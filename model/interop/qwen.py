"""Qwen2, Qwen3, and Qwen3's mixture of experts.

Qwen2 (arXiv 2407.10671) has biases of queries, keys and values; Qwen3 (arXiv 2505.09388) has QK-norm instead.
"""

from collections.abc import Iterator

from model.config import ModelConfig
from model.interop import llama
from model.interop.family import Family
from model.interop.keys import Always, Key, Only
from model.interop.layers import QwenLayers, SlidingWindow, SparseLayers
from model.interop.llama import AttentionBias
from model.interop.parts import attention, ends, experts, feed_forward, sizes
from model.interop.rope import Rope
from model.interop.weights import Pair, same


def moe_weights(c: ModelConfig) -> Iterator[Pair]:
    yield from ends(c)
    for i, kind in enumerate(c.layer_feed_forwards):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        yield same(f"{ours}.mixer_norm.weight", f"{theirs}.input_layernorm.weight")
        yield from attention(c, f"{ours}.mixer", f"{theirs}.self_attn")
        yield same(f"{ours}.ff_norm.weight", f"{theirs}.post_attention_layernorm.weight")
        if kind == "moe":
            names = ("gate_proj", "up_proj", "down_proj")
            yield from experts(c, f"{ours}.feed_forward", f"{theirs}.mlp", names)
        else:
            yield from feed_forward(c, f"{ours}.feed_forward", f"{theirs}.mlp")


FAMILIES = (
    Family(
        "Qwen3ForCausalLM",
        "qwen3",
        (
            *sizes(151_936, 4096, 22_016, 32, 32, 32_768, 1e-6),
            Key("num_key_value_heads", "n_kv_heads", 32),
            Key("head_dim", "d_head", 128),
            Key("tie_word_embeddings", "tie_embeddings", False),
            AttentionBias(),
            QwenLayers(),
            Rope(),
            Only("hidden_act", ("silu",), "silu"),
            Always(norm="rmsnorm", feed_forward="swiglu", qk_norm=True),
        ),
        llama.weights,
    ),
    Family(
        "Qwen2ForCausalLM",
        "qwen2",
        (
            *sizes(151_936, 4096, 22_016, 32, 32, 32_768, 1e-6),
            Key("num_key_value_heads", "n_kv_heads", 32),
            Key("tie_word_embeddings", "tie_embeddings", False),
            QwenLayers(),
            Rope(),
            Only("hidden_act", ("silu",), "silu"),
            Always(norm="rmsnorm", feed_forward="swiglu", qkv_bias=True),
        ),
        llama.weights,
    ),
    Family(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        (
            *sizes(151_936, 2048, 6144, 24, 32, 32_768, 1e-6),
            Key("num_key_value_heads", "n_kv_heads", 4),
            Key("head_dim", "d_head", None),
            Key("tie_word_embeddings", "tie_embeddings", False),
            Key("num_local_experts", "moe.n_experts", 128, older="num_experts"),
            Key("num_experts_per_tok", "moe.top_k", 8),
            Key("moe_intermediate_size", "moe.d_ff", 768),
            Key("norm_topk_prob", "moe.normalise", False),
            Key("router_aux_loss_coef", "moe.balance_coef", 0.001),
            AttentionBias(),
            SlidingWindow(4096, "use_sliding_window"),
            SparseLayers(),
            Rope(),
            Only("hidden_act", ("silu",), "silu"),
            Always(norm="rmsnorm", feed_forward="swiglu", qk_norm=True),
        ),
        moe_weights,
    ),
)
