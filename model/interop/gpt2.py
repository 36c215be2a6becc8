"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, GELU, biases everywhere, matrices kept as (in, out)."""

from collections.abc import Iterator
from dataclasses import dataclass

from model.config import ModelConfig
from model.interop.family import Family
from model.interop.keys import Always, Key, Only, Ours, Theirs
from model.interop.weights import Pair, Transposed, same

MATRICES = {
    "mixer.qkv": "attn.c_attn",
    "mixer.out": "attn.c_proj",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}


@dataclass(frozen=True)
class Inner:
    """The feed-forward's width; null is four times the model's."""

    def read(self, theirs: Theirs) -> Ours:
        return {"d_ff": theirs.get("n_inner") or 4 * theirs.get("n_embd", 768)}

    def write(self, config: ModelConfig) -> Theirs:
        return {"n_inner": None if config.ff_width == 4 * config.d_model else config.ff_width}


def weights(c: ModelConfig) -> Iterator[Pair]:
    yield same("embedding.weight", "transformer.wte.weight")
    yield same("positions.weight", "transformer.wpe.weight")
    for i in range(c.n_layers):
        ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
        for x in ("weight", "bias"):
            yield same(f"{ours}.mixer_norm.{x}", f"{theirs}.ln_1.{x}")
            yield same(f"{ours}.ff_norm.{x}", f"{theirs}.ln_2.{x}")
        for a, b in MATRICES.items():
            yield Pair(f"{ours}.{a}.weight", (f"{theirs}.{b}.weight",), Transposed())
            yield same(f"{ours}.{a}.bias", f"{theirs}.{b}.bias")
    for x in ("weight", "bias"):
        yield same(f"norm.{x}", f"transformer.ln_f.{x}")
    if not c.tie_embeddings:
        yield same("head.weight", "lm_head.weight")


FAMILIES = (
    Family(
        "GPT2LMHeadModel",
        "gpt2",
        (
            Key("vocab_size", "vocab_size", 50257),
            Key("n_embd", "d_model", 768),
            Key("n_layer", "n_layers", 12),
            Key("n_head", "n_heads", 12),
            Key("n_positions", "max_seq_len", 1024),
            Key("layer_norm_epsilon", "norm_eps", 1e-5),
            Key("initializer_range", "init_std", 0.02),
            Key("tie_word_embeddings", "tie_embeddings", True),
            Inner(),
            Only("activation_function", ("gelu_new", "gelu_pytorch_tanh"), "gelu_new", "(the tanh form)"),
            Only("scale_attn_weights", (True,), True),
            Only("scale_attn_by_inverse_layer_idx", (False,), False),
            Always(norm="layernorm", position="learned", feed_forward="gelu", bias=True),
        ),
        weights,
        prefix="transformer.",
        ignored=("attn.bias", "attn.masked_bias"),
    ),
)
