"""Small models of every kind; a property that all must have is a test parametrised over `SHAPES`."""

import torch

from model.config import ModelConfig
from model.decoder import Decoder
from model.part_configs import (
    H3Config,
    LinearAttentionConfig,
    Mamba2Config,
    MoeConfig,
    RgLruConfig,
    RopeScaling,
    ShortConvConfig,
)

SMALL = {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}
SHAPES = {
    "llama": ModelConfig(**SMALL),
    "gqa-qk-norm": ModelConfig(**SMALL, n_kv_heads=2, qk_norm=True, tie_embeddings=False),
    "mqa-geglu-softcap": ModelConfig(**SMALL, n_kv_heads=1, feed_forward="geglu", logit_softcap=3.0, d_head=16),
    "gpt2": ModelConfig(
        **SMALL, position="learned", norm="layernorm", feed_forward="gelu", bias=True, ff_multiple_of=1
    ),
    "relu2-no-positions": ModelConfig(**SMALL, position="none", feed_forward="relu2"),
    "moe-shared": ModelConfig(
        **SMALL, ff_pattern=("moe", "dense"), moe=MoeConfig(n_experts=4, top_k=2, n_shared=1, balance="bias")
    ),
    "olmo2": ModelConfig(**SMALL, n_kv_heads=2, norm_position="post", qk_norm=True, qk_norm_over="all"),
    "part-rope-yarn-qkv-bias": ModelConfig(
        **SMALL,
        qkv_bias=True,
        rope_fraction=0.5,
        rope_scaling=RopeScaling("yarn", 4.0, 16),
        attention_scale=0.5,
    ),
    "window": ModelConfig(**SMALL, pattern=("window",), window=5),
    "window-of-one": ModelConfig(**SMALL, pattern=("window", "attention"), window=1, global_tokens=1, n_kv_heads=1),
    "window-gqa-global": ModelConfig(**SMALL, pattern=("window",), window=4, global_tokens=6, n_kv_heads=2),
    "gemma3": ModelConfig(
        **SMALL,
        pattern=("window", "attention"),
        window=6,
        rope_theta_local=100.0,
        rope_scaling=RopeScaling("linear", 8.0),
        norm="rmsnorm_plus_one",
        norm_position="sandwich",
        qk_norm=True,
        feed_forward="geglu",
    ),
    "linear-attention": ModelConfig(
        **SMALL, pattern=("linear_attention",), linear_attention=LinearAttentionConfig(chunk=8)
    ),
    "linear-attention-hybrid": ModelConfig(
        **SMALL,
        pattern=("linear_attention", "window"),
        linear_attention=LinearAttentionConfig(chunk=4),
        window=4,
        global_tokens=2,
        bias=True,
    ),
    "mamba2": ModelConfig(
        **SMALL, pattern=("mamba2",), ff_pattern=("none",), mamba2=Mamba2Config(d_state=8, head_dim=8, chunk=8)
    ),
    "mamba2-hybrid": ModelConfig(
        **SMALL,
        pattern=("mamba2", "attention"),
        mamba2=Mamba2Config(d_state=4, head_dim=16, n_groups=2, conv_width=3, conv_bias=False, chunk=5),
        bias=True,
    ),
    "hybrid-moe": ModelConfig(
        **SMALL | {"n_layers": 3},
        pattern=("mamba2", "mamba2", "attention"),
        ff_pattern=("moe",),
        mamba2=Mamba2Config(d_state=8, head_dim=8, chunk=8),
        moe=MoeConfig(n_experts=4, top_k=2),
    ),
    "h3": ModelConfig(**SMALL, pattern=("h3",), h3=H3Config(d_state=8, chunk=8)),
    "h3-heads-hybrid": ModelConfig(
        **SMALL, pattern=("h3", "attention"), h3=H3Config(d_state=4, head_dim=4, shift=3, chunk=5), bias=True
    ),
    "rg-lru": ModelConfig(**SMALL, pattern=("rg_lru",), rg_lru=RgLruConfig(width=48, n_blocks=3)),
    "griffin": ModelConfig(
        **SMALL | {"n_layers": 3}, pattern=("rg_lru", "rg_lru", "window"), window=4, n_kv_heads=1, bias=True
    ),
    "short-conv": ModelConfig(**SMALL, pattern=("short_conv",), short_conv=ShortConvConfig(4, bias=True)),
    "lfm2": ModelConfig(**SMALL, pattern=("short_conv", "attention"), n_kv_heads=2, qk_norm=True),
}
TWO_WAY = {  # what has no state, since attention sees a whole document
    "two-way": ModelConfig(**SMALL, causal=False, n_kv_heads=2),
    "two-way-window": ModelConfig(**SMALL, causal=False, pattern=("window",), window=3, global_tokens=2, n_kv_heads=2),
}


def lively(config: ModelConfig, seed: int = 0) -> Decoder:
    """Weights large enough that every part matters; norms and biases are not at their defaults."""
    model = Decoder(config).init_weights(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.2 if parameter.ndim == 1 or "positions" in name else 0.1))
    return model.eval()


def random_tokens(*shape: int, vocab_size: int = 97, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(seed))
