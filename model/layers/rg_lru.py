"""The recurrent block of Griffin; De et al. 2024, arXiv 2402.19427, sections 2.2 to 2.4.

    y = W_out (gelu(W_y x) * RG-LRU(conv(W_x x)))

    r_t = sigmoid(W_a x_t + b_a)       recurrence gate        log a_t = -c softplus(Lambda) r_t,  c = 8
    i_t = sigmoid(W_i x_t + b_i)       input gate             h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * (i_t * x_t)

W_a and W_i are block-diagonal. Lambda has the sign of RecurrentGemma's weights (the paper's is minus it). As there, a
document's first token has no h_{t-1} to make room for and enters unscaled: h_0 = i_0 * x_0.

Shapes: B rows, T tokens, D model, C channels in n blocks of W.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.errors import UserError
from model.init import linear_, normal_, uniform_
from model.kernels.scan import linear_scan
from model.layers.causal_conv import CausalConv, ConvState
from model.roles import Role
from model.segments import Segments
from model.state import Fixed

C = 8.0
A_RANGE = (0.9, 0.999)  # a^c at initialisation (section 2.4): uniform, with the gate open


@dataclass
class RgLruState(Fixed):
    """What a row remembers, whatever its length: the convolution's last inputs, and h in float32."""

    conv: ConvState
    h_BC: Tensor


class RecurrentBlock(nn.Module):
    """The mixer: two branches, one of them a gate."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width = config.rg_lru.width or config.d_model
        out_bias = config.has_out_bias
        self.init_std = config.init_std
        self.linear_y = nn.Linear(config.d_model, width, bias=config.bias)
        self.linear_x = nn.Linear(config.d_model, width, bias=config.bias)
        self.conv_1d = CausalConv(width, config.rg_lru.conv_width, bias=True)
        self.rg_lru = RgLru(width, config.rg_lru.n_blocks or config.n_heads)
        self.linear_out = nn.Linear(width, config.d_model, bias=out_bias)

    def forward(
        self, x_BTD: Tensor, segments: Segments, state: RgLruState | None = None
    ) -> tuple[Tensor, RgLruState | None]:
        gate = F.gelu(self.linear_y(x_BTD), approximate="tanh")
        x = self.conv_1d(self.linear_x(x_BTD), segments, None if state is None else state.conv)
        if state is None:
            h = self.rg_lru(x, segments.starts_BT, reset=not segments.whole)
        else:
            h = self.rg_lru(x, segments.positions_BT == 0, state.h_BC)
            _keep_last(h, segments.lengths_B, state)
            state.absorbed(x.shape[1], segments.lengths_B, lambda n_B: _keep_last(h, n_B, state))
        return self.linear_out(gate * h.to(gate.dtype)), state

    def new_state(self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype) -> RgLruState:
        h = torch.zeros(batch, self.linear_x.out_features, device=device, dtype=torch.float32)
        return RgLruState(self.conv_1d.new_state(batch, device, dtype), h)

    def init_weights(self, generator: torch.Generator, std: float, output_std: float) -> None:
        linear_(self.linear_y, std, generator)
        linear_(self.linear_x, std, generator)
        linear_(self.linear_out, output_std, generator)
        self.conv_1d.init_weights(generator)
        self.rg_lru.init_weights(generator, self.init_std)  # a block's fan-in is the same at every width (mup.py)

    def flops_per_token(self, span_N: Tensor) -> float:
        """The convolution, both gates' blocks, and the recurrence."""
        gates = 2 * (self.rg_lru.input_gate_weight.numel() + self.rg_lru.recurrent_gate_weight.numel())
        return self.conv_1d.flops_per_token + gates + 2 * self.linear_x.out_features

    def parameter_roles(self) -> dict[str, Role]:
        return {name: Role("vector") for name in ("rg_lru.input_gate_bias", "rg_lru.recurrent_gate_bias")}


class RgLru(nn.Module):
    """The unit alone. All of it is float32 but the gates' products."""

    def __init__(self, width: int, n_blocks: int) -> None:
        super().__init__()
        if width % n_blocks:
            raise UserError(
                f"rg_lru: {n_blocks} blocks (rg_lru.n_blocks, or n_heads) don't divide its {width} channels "
                "(rg_lru.width, or d_model): change one"
            )
        block = width // n_blocks
        self.recurrent_param = nn.Parameter(torch.empty(width))  # Lambda
        self.input_gate_weight = nn.Parameter(torch.empty(n_blocks, block, block))  # (n, in, out)
        self.input_gate_bias = nn.Parameter(torch.empty(n_blocks, block))
        self.recurrent_gate_weight = nn.Parameter(torch.empty(n_blocks, block, block))
        self.recurrent_gate_bias = nn.Parameter(torch.empty(n_blocks, block))

    def forward(self, x_BTC: Tensor, first_BT: Tensor, h_BC: Tensor | None = None, reset: bool = False) -> Tensor:
        """h of every token (B, T, C), float32; from h_BC (None: 0).

        `first_BT` is True at each document's first token; reset: there may be some inside a row.
        """
        x_BTnW = x_BTC.unflatten(-1, (self.input_gate_bias.shape[0], -1))
        weight = torch.cat((self.input_gate_weight, self.recurrent_gate_weight), -1)
        i, r = torch.einsum("btni,nio->btno", x_BTnW, weight.to(x_BTC.dtype)).float().chunk(2, -1)
        i = torch.sigmoid(i + self.input_gate_bias).flatten(2)
        r = torch.sigmoid(r + self.recurrent_gate_bias).flatten(2)
        log_a = r * (-C * F.softplus(self.recurrent_param))
        # sqrt's slope at 0 is infinite: it starts at 1e-12, where 1 - a^2 is lost in float32's rounding of a anyway.
        scale = torch.sqrt(-torch.expm1(2 * log_a).clamp(max=-1e-12)).masked_fill(first_BT[..., None], 1.0)
        a, b = log_a.exp(), scale * (i * x_BTC.float())
        if h_BC is not None:
            b = torch.cat((b[:, :1] + a[:, :1] * h_BC[:, None], b[:, 1:]), 1)
        return linear_scan(a, b, first_BT if reset else None)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, std: float) -> None:
        for weight in (self.input_gate_weight, self.recurrent_gate_weight):
            normal_(weight, std, generator)
        for bias in (self.input_gate_bias, self.recurrent_gate_bias):
            nn.init.zeros_(bias)
        uniform_(self.recurrent_param, *A_RANGE, generator)
        self.recurrent_param.copy_(torch.log(torch.expm1(-self.recurrent_param.log() / C)))  # softplus's inverse


def _keep_last(h_BTC: Tensor, lengths_B: Tensor | None, state: RgLruState) -> None:
    """Each row's h after its real tokens; the one before if it has none."""
    if lengths_B is None:
        state.h_BC = h_BTC[:, -1].clone()  # a view would keep all of them
        return
    rows = torch.arange(h_BTC.shape[0], device=h_BTC.device)
    last_BC = h_BTC[rows, (lengths_B - 1).clamp(min=0)]
    state.h_BC = torch.where(lengths_B[:, None] > 0, last_BC, state.h_BC)
