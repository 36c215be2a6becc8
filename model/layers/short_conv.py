"""Gated short convolution: LFM2, Liquid AI 2025 (its `Lfm2ShortConv`).

    B, C, x = W_in u        y = W_out (C * conv(B * x))

A convolution over a few tokens between two gates that depend on the input: all that it remembers are its last inputs.
"""

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.init import linear_
from model.layers.causal_conv import CausalConv, ConvState
from model.roles import Role
from model.segments import Segments


class ShortConv(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        D, own = config.d_model, config.short_conv.bias
        bias = config.bias if own is None else own
        out_bias = config.has_out_bias if own is None else own
        self.sizes = (D, D, D)  # B, C, x
        self.in_proj = nn.Linear(D, 3 * D, bias=bias)
        self.conv = CausalConv(D, config.short_conv.conv_width, bias)
        self.out_proj = nn.Linear(D, D, bias=out_bias)

    def forward(
        self, x_BTD: Tensor, segments: Segments, state: ConvState | None = None
    ) -> tuple[Tensor, ConvState | None]:
        B, C, x = self.in_proj(x_BTD).split(self.sizes, -1)
        return self.out_proj(C * self.conv(B * x, segments, state)), state

    def new_state(self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype) -> ConvState:
        return self.conv.new_state(batch, device, dtype)

    def init_weights(self, generator: torch.Generator, std: float, output_std: float) -> None:
        linear_(self.in_proj, std, generator)
        self.conv.init_weights(generator)
        linear_(self.out_proj, output_std, generator)

    def flops_per_token(self, span_N: Tensor) -> float:
        return self.conv.flops_per_token

    def parameter_roles(self) -> dict[str, Role]:
        return {"in_proj.weight": Role("matrix", rows=self.sizes)}
