"""Random initialisation that is the same on every device: drawn on the CPU, then copied."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def normal_(weight: Tensor, std: float, generator: torch.Generator) -> None:
    weight.copy_(torch.empty(weight.shape, dtype=torch.float32).normal_(std=std, generator=generator))


@torch.no_grad()
def linear_(linear: nn.Linear, std: float, generator: torch.Generator) -> None:
    """Normal weights, zero bias."""
    normal_(linear.weight, std, generator)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


@torch.no_grad()
def uniform_(weight: Tensor, low: float, high: float, generator: torch.Generator) -> None:
    weight.copy_(torch.empty(weight.shape, dtype=torch.float32).uniform_(low, high, generator=generator))
