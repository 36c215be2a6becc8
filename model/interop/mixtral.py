"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with a mixture of experts in every layer."""

from collections.abc import Iterator

from model.config import ModelConfig
from model.interop.family import Family
from model.interop.keys import Always, Declaration, Key, Only, Ours, Theirs
from model.interop.layers import SlidingWindow
from model.interop.parts import attention, ends, experts, sizes
from model.interop.rope import Rope
from model.interop.weights import Pair, same


class ExpertWidth(Declaration):
    """`intermediate_size` is the width of one expert."""

    def read(self, theirs: Theirs) -> Ours:
        return {"moe.d_ff": theirs.get("intermediate_size", 14_336)}

    def write(self, config: ModelConfig) -> Theirs:
        return {"intermediate_size": config.expert_width}


def weights(c: ModelConfig) -> Iterator[Pair]:
    yield from ends(c)
    for i in range(c.n_layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        yield same(f"{ours}.mixer_norm.weight", f"{theirs}.input_layernorm.weight")
        yield from attention(c, f"{ours}.mixer", f"{theirs}.self_attn")
        yield same(f"{ours}.ff_norm.weight", f"{theirs}.post_attention_layernorm.weight")
        yield from experts(c, f"{ours}.feed_forward", f"{theirs}.block_sparse_moe", ("w1", "w3", "w2"))


FAMILIES = (
    Family(
        "MixtralForCausalLM",
        "mixtral",
        (
            *sizes(32_000, 4096, 14_336, 32, 32, 4096 * 32, 1e-5),
            ExpertWidth(),
            Key("num_key_value_heads", "n_kv_heads", 8),
            Key("head_dim", "d_head", None),
            Key("tie_word_embeddings", "tie_embeddings", False),
            Key("num_local_experts", "moe.n_experts", 8),
            Key("num_experts_per_tok", "moe.top_k", 2),
            Key("router_aux_loss_coef", "moe.balance_coef", 0.001),
            SlidingWindow(None),
            Rope(1_000_000.0),
            Only("hidden_act", ("silu",), "silu"),
            Always(norm="rmsnorm", feed_forward="swiglu", ff_pattern=("moe",)),
        ),
        weights,
    ),
)
