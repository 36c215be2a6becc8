"""OLMo 2 (arXiv 2501.00656): the norm comes after each sublayer, and QK-norm spans all heads at once."""

from collections.abc import Iterator

from model.config import ModelConfig
from model.interop.family import Family
from model.interop.keys import Always, Key, Only
from model.interop.llama import AttentionBias
from model.interop.parts import attention, ends, feed_forward, sizes
from model.interop.rope import Rope
from model.interop.weights import Pair, same


def weights(c: ModelConfig) -> Iterator[Pair]:
    yield from ends(c)
    for i in range(c.n_layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        yield from attention(c, f"{ours}.mixer", f"{theirs}.self_attn")
        yield same(f"{ours}.mixer_post_norm.weight", f"{theirs}.post_attention_layernorm.weight")
        yield from feed_forward(c, f"{ours}.feed_forward", f"{theirs}.mlp")
        yield same(f"{ours}.ff_post_norm.weight", f"{theirs}.post_feedforward_layernorm.weight")


FAMILIES = (
    Family(
        "Olmo2ForCausalLM",
        "olmo2",
        (
            *sizes(50_304, 4096, 11_008, 32, 32, 2048, 1e-5),
            Key("num_key_value_heads", "n_kv_heads", None),
            Key("tie_word_embeddings", "tie_embeddings", False),
            AttentionBias(),
            Rope(),
            Only("hidden_act", ("silu",), "silu"),
            Always(norm="rmsnorm", norm_position="post", feed_forward="swiglu", qk_norm=True, qk_norm_over="all"),
        ),
        weights,
    ),
)
