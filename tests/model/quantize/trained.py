"""A small model that has learned something, in seconds: what quantization costs shows only on such a one."""

import functools

import torch

from model.config import ModelConfig
from model.decoder import Decoder
from model.objectives.next_token import Batch, next_token
from model.part_configs import MoeConfig

LENGTH = 64
CONFIG = ModelConfig(vocab_size=64, d_model=64, n_layers=2, n_heads=2, max_seq_len=LENGTH)
MOE = ModelConfig(
    vocab_size=64, d_model=64, n_layers=2, n_heads=2, max_seq_len=LENGTH, ff_pattern=("moe",), moe=MoeConfig(4, 2)
)


def text(rows: int, seed: int) -> torch.Tensor:
    """(rows, LENGTH + 1): a walk on 64 tokens in which three successors of each are likely."""
    successors = torch.randint(0, 64, (64, 3), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 64, (rows, LENGTH + 1), generator=generator)
    choice = torch.multinomial(torch.tensor([0.6, 0.25, 0.1, 0.05]), rows * LENGTH, True, generator=generator)
    for t in range(LENGTH):
        which = choice.view(rows, LENGTH)[:, t]
        known = successors[tokens[:, t], which.clamp(max=2)]
        tokens[:, t + 1] = torch.where(which < 3, known, tokens[:, t + 1])
    return tokens


def batch(rows: int, seed: int) -> Batch:
    tokens = text(rows, seed)
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(LENGTH).expand(rows, LENGTH))


def loss(model: Decoder) -> float:
    """Nats per token on text that it wasn't trained on."""
    with torch.no_grad():
        total, count, _ = next_token(model, batch(32, 999))
        return float(total) / float(count)


@functools.cache
def _weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    model = Decoder(config).init_weights(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for step in range(60):
        total, count, _ = next_token(model, batch(16, step))
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    return model.state_dict()


def trained(config: ModelConfig = CONFIG) -> Decoder:
    """A fresh copy of it."""
    model = Decoder(config)
    model.load_state_dict(_weights(config))
    return model.eval()


def calibration(rows: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    found = batch(rows, 500)
    return [(found.tokens_BT, found.positions_BT)]
