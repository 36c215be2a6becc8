"""The position-wise feed-forward: SwiGLU and GeGLU (Shazeer 2020, arXiv 2002.05202), GELU, ReLU^2 (So et al. 2021).

gated:  y = W_out (act(W_gate x) * W_up x)      plain:  y = W_out act(W_in x)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.init import linear_


class FeedForward(nn.Module):
    """W_gate and W_up are apart on purpose: on a CPU the halves of one wide product are strided, and slower after."""

    def __init__(self, config: ModelConfig, width: int | None = None) -> None:
        super().__init__()
        self.kind, width = config.feed_forward, width or config.ff_width
        bias = config.has_ff_bias
        self.gate = nn.Linear(config.d_model, width, bias=bias) if config.gated else None
        self.up = nn.Linear(config.d_model, width, bias=bias)
        self.down = nn.Linear(width, config.d_model, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        up = self.up(x_BTD)
        gate = None if self.gate is None else self.gate(x_BTD)
        return self.down(activate(self.kind, gate, up))

    def init_weights(self, generator: torch.Generator, std: float, output_std: float) -> None:
        for linear in (self.gate, self.up):
            if linear is not None:
                linear_(linear, std, generator)
        linear_(self.down, output_std, generator)


def activate(kind: str, gate: Tensor | None, up: Tensor) -> Tensor:
    """The hidden layer: act(gate) * up, or act(up) where there is no gate."""
    if gate is not None:
        return (F.silu(gate) if kind == "swiglu" else F.gelu(gate, approximate="tanh")) * up
    return F.gelu(up, approximate="tanh") if kind == "gelu" else F.relu(up).square()
