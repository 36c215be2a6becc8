"""Any integer is a seed, wherever the mathematics draws numbers."""

import pytest
import torch
from small_models import SMALL, lively, random_tokens

from model.config import ModelConfig
from model.decoder import Decoder
from model.objectives.masked_diffusion import hide, likelihood_bound
from model.objectives.next_token import Batch

SEEDS = [2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -1, -(2**63) - 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_weights_are_drawn_from_any_seed(seed):
    config = ModelConfig(**SMALL)
    made, again, other = (Decoder(config).init_weights(s).embedding.weight for s in (seed, seed, seed + 1))
    assert torch.equal(made, again) and not torch.equal(made, other)


@pytest.mark.parametrize("seed", SEEDS)
def test_tokens_are_hidden_by_any_seed(seed):
    config = ModelConfig(**SMALL, causal=False)
    tokens = random_tokens(2, 12, vocab_size=config.vocab_size - 1)
    batch = Batch(tokens, tokens, torch.arange(12).expand(2, -1))
    rows = torch.arange(2)
    masked, again = (hide(batch, config.vocab_size - 1, rows, 2, seed) for _ in range(2))
    assert torch.equal(masked[0], again[0])
    assert torch.isfinite(likelihood_bound(lively(config), batch, rows, 2, seed)[0]).all()
