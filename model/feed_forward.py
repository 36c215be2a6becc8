"""The position-wise feed-forward: SwiGLU and GeGLU (Shazeer 2020, arXiv 2002.05202), GELU, ReLU^2 (So et al.
2021).

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
        bias = config.bias if config.ff_bias is None else config.ff_bias
        self.gate = nn.Linear(config.d_model, width, bias=bias) if config.gated else None
        self.up = nn.Linear(config.d_model, width, bias=bias)
        self.down = nn.Linear(width, config.d_model, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        up = self.up(x_BTD)
        if self.gate is not None:
            gate = self.gate(x_BTD)
            h = (F.silu(gate) if self.kind == "swiglu" else F.gelu(gate, approximate="tanh")) * up
        elif self.kind == "gelu":
            h = F.gelu(up, approximate="tanh")
        else:
            h = F.relu(up).square()
        return self.down(h)

    def init_weights(self, generator: torch.Generator, std: float, output_std: float) -> None:
        for linear in (self.gate, self.up):
            if linear is not None:
                linear_(linear, std, generator)
        linear_(self.down, output_std, generator)
