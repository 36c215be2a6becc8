"""Gemma 1 to 3, text only (arXiv 2403.08295, 2408.00118, 2503.19786).

Embeddings times sqrt(d), norms kept as their distance from 1, GeGLU; from 2 on a norm on both sides of each sublayer
and local layers; in 3 QK-norm, and a theta for the local layers. Gemma 2's soft-cap of attention scores has no
counterpart here.
"""

from collections.abc import Callable, Iterator

from model.config import ModelConfig
from model.interop import llama
from model.interop.family import Family
from model.interop.keys import Always, Key, Nullable, Only, QueryScale, ScaledEmbedding, Theirs
from model.interop.layers import LayerTypes
from model.interop.llama import AttentionBias
from model.interop.parts import attention, ends, feed_forward, sizes
from model.interop.rope import LocalRope, Rope
from model.interop.weights import Pair, same

TANH = ("gelu_pytorch_tanh", "gelu_new")
CAPPED = Only("attn_logit_softcapping", (None,), None, "(there is no soft-cap of attention scores)")
ONE_WAY = Only("use_bidirectional_attention", (False, None), False)
KIND = {"norm": "rmsnorm_plus_one", "feed_forward": "geglu"}


def every(default: int) -> Callable[[Theirs], list[str]]:
    """Layer types where they are not named: one in `sliding_window_pattern` sees everything."""

    def types(theirs: Theirs) -> list[str]:
        step, depth = theirs.get("sliding_window_pattern", default), theirs["num_hidden_layers"]
        return ["full_attention" if (i + 1) % step == 0 else "sliding_attention" for i in range(depth)]

    return types


def weights(c: ModelConfig) -> Iterator[Pair]:
    yield from ends(c)
    for i in range(c.n_layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        yield same(f"{ours}.mixer_norm.weight", f"{theirs}.input_layernorm.weight")
        yield from attention(c, f"{ours}.mixer", f"{theirs}.self_attn")
        yield same(f"{ours}.mixer_post_norm.weight", f"{theirs}.post_attention_layernorm.weight")
        yield same(f"{ours}.ff_norm.weight", f"{theirs}.pre_feedforward_layernorm.weight")
        yield from feed_forward(c, f"{ours}.feed_forward", f"{theirs}.mlp")
        yield same(f"{ours}.ff_post_norm.weight", f"{theirs}.post_feedforward_layernorm.weight")


FAMILIES = (
    Family(
        "GemmaForCausalLM",
        "gemma",
        (
            *sizes(256_000, 3072, 24_576, 28, 16, 8192, 1e-6),
            Key("num_key_value_heads", "n_kv_heads", 16),
            Key("head_dim", "d_head", 256),
            Key("tie_word_embeddings", "tie_embeddings", True),
            AttentionBias(),
            ScaledEmbedding(),
            Rope(),
            Only("hidden_activation", (*TANH, None), None),
            Only("hidden_act", (*TANH, "gelu"), TANH[0]),  # files that say "gelu" mean the tanh form
            ONE_WAY,
            Always(**KIND),
        ),
        llama.weights,
    ),
    Family(
        "Gemma3ForCausalLM",
        "gemma3_text",
        (
            *sizes(262_208, 2304, 9216, 26, 8, 131_072, 1e-6),
            Key("num_key_value_heads", "n_kv_heads", 4),
            Key("head_dim", "d_head", 256),
            Key("tie_word_embeddings", "tie_embeddings", True),
            Key("sliding_window", "window", 4096),
            LayerTypes(otherwise=every(6)),
            Nullable("final_logit_softcapping", "logit_softcap", None),
            QueryScale("query_pre_attn_scalar", 256),
            AttentionBias(),
            ScaledEmbedding(),
            LocalRope(),
            Only("hidden_activation", TANH, TANH[0]),
            CAPPED,
            ONE_WAY,
            Always(**KIND, norm_position="sandwich", qk_norm=True),
        ),
        weights,
    ),
    Family(
        "Gemma2ForCausalLM",
        "gemma2",
        (
            *sizes(256_000, 2304, 9216, 26, 8, 8192, 1e-6),
            Key("num_key_value_heads", "n_kv_heads", 4),
            Key("head_dim", "d_head", 256),
            Key("tie_word_embeddings", "tie_embeddings", True),
            Key("sliding_window", "window", 4096),
            LayerTypes(otherwise=every(2)),
            Nullable("final_logit_softcapping", "logit_softcap", 30.0),
            QueryScale("query_pre_attn_scalar", 256),
            AttentionBias(),
            ScaledEmbedding(),
            Rope(),
            Only("hidden_activation", TANH, TANH[0]),
            Only("attn_logit_softcapping", (None,), 50.0, CAPPED.hint),
            ONE_WAY,
            Always(**KIND, norm_position="sandwich"),
        ),
        weights,
    ),
)
