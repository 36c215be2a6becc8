"""Small models of every kind; a property that all must have is a test parametrised over `SHAPES`."""

import torch

from model.config import ModelConfig
from model.decoder import Decoder

SMALL = {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}
SHAPES = {
    "llama": ModelConfig(**SMALL),
    "gqa-qk-norm": ModelConfig(**SMALL, n_kv_heads=2, qk_norm=True, tie_embeddings=False),
    "mqa-geglu-softcap": ModelConfig(**SMALL, n_kv_heads=1, feed_forward="geglu", logit_softcap=3.0, d_head=16),
    "gpt2": ModelConfig(
        **SMALL, position="learned", norm="layernorm", feed_forward="gelu", bias=True, ff_multiple_of=1
    ),
    "relu2-no-positions": ModelConfig(**SMALL, position="none", feed_forward="relu2"),
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
