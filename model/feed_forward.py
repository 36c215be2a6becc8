"""The position-wise feed-forward: SwiGLU and GeGLU (Shazeer 2020, arXiv 2002.05202), GELU, ReLU^2 (So et al.
2021).

gated:  y = W_out (act(W_gate x) * W_up x)      plain:  y = W_out act(W_in x)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.init import linear_
from model.optim.roles import Role


class FeedForward(nn.Module):
    """The gate's and the up-projection's rows are one matrix `w_in`, gate first."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind, self.gated, self.width = config.feed_forward, config.gated, config.ff_width
        self.w_in = nn.Linear(config.d_model, self.width * (2 if self.gated else 1), bias=config.bias)
        self.w_out = nn.Linear(self.width, config.d_model, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h = self.w_in(x_BTD)
        if self.kind == "swiglu":
            gate, up = h.chunk(2, -1)
            h = F.silu(gate) * up
        elif self.kind == "geglu":
            gate, up = h.chunk(2, -1)
            h = F.gelu(gate, approximate="tanh") * up
        elif self.kind == "gelu":
            h = F.gelu(h, approximate="tanh")
        else:
            h = F.relu(h).square()
        return self.w_out(h)

    def init_weights(self, generator: torch.Generator, std: float, output_std: float) -> None:
        linear_(self.w_in, std, generator)
        linear_(self.w_out, output_std, generator)

    def parameter_roles(self) -> dict[str, Role]:
        return {"w_in.weight": Role("matrix", rows=(self.width, self.width))} if self.gated else {}
