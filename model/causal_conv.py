"""Depthwise causal convolution: a few taps a channel over the latest inputs of the same document.

    y_t = bias + sum over j < W of  w_j x_{t-j}        where x_{t-j} belongs to t's document, else 0

Shapes: B rows, T tokens, C channels, W taps. The weight is (C, 1, W) with the newest input's tap last, as torch's
Conv1d(groups=C) keeps it. Written as W shifted products over memory as it lies: no (B, C, T) copy, and a tap that would
cross into an earlier document is left out exactly.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.init import uniform_
from model.segments import Segments


@dataclass
class ConvState:
    """last_BWC: the W - 1 latest inputs of each row, the newest last; zeros before its first token."""

    last_BWC: Tensor

    def extend(self, x_BTC: Tensor, lengths_B: Tensor | None) -> Tensor:
        """The remembered inputs, then T new ones (of which `lengths_B` are real): (B, W - 1 + T, C)."""
        kept, T = self.last_BWC.shape[1], x_BTC.shape[1]
        both = torch.cat((self.last_BWC.to(x_BTC.dtype), x_BTC), 1)
        if lengths_B is None:
            latest = both[:, T:]
        else:
            at = lengths_B[:, None] + torch.arange(kept, device=lengths_B.device)
            latest = both.gather(1, at[..., None].expand(-1, -1, both.shape[2]))
        self.last_BWC = latest.to(self.last_BWC.dtype, copy=True)
        return both

    def select(self, rows: Tensor) -> "ConvState":
        return ConvState(self.last_BWC[rows])


class CausalConv(nn.Module):
    def __init__(self, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(self, x_BTC: Tensor, segments: Segments, state: ConvState | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C), in x's dtype; the sums are float32. `state` is updated."""
        T = x_BTC.shape[1]
        if state is not None:
            x_BTC = state.extend(x_BTC, segments.lengths_B)
        starts_BT = None if segments.whole else segments.starts_BT
        y = _ShiftedProducts.apply(x_BTC, self.weight, self.bias, starts_BT)
        return y[:, y.shape[1] - T :]  # type: ignore[index]

    def new_state(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> ConvState:
        channels, _, width = self.weight.shape
        return ConvState(torch.zeros(batch, width - 1, channels, device=device, dtype=dtype))

    def init_weights(self, generator: torch.Generator) -> None:
        """Uniform within 1 / sqrt(W), as torch's Conv1d; no bias at first."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        uniform_(self.weight, -bound, bound, generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def flops_per_token(self) -> int:
        return 2 * self.weight.numel()


class _ShiftedProducts(torch.autograd.Function):
    """Autograd would keep a masked copy of x for each tap; here x alone is kept."""

    @staticmethod
    def forward(ctx, x_BTC: Tensor, weight: Tensor, bias: Tensor | None, starts_BT: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BTC, weight, starts_BT)
        ctx.has_bias = bias is not None
        x, w_WC = x_BTC.float(), weight[:, 0].t().contiguous()
        y = x * w_WC[-1] if bias is None else torch.addcmul(bias, x, w_WC[-1])
        for j, crosses in _taps(x_BTC.shape[1], weight.shape[2], starts_BT):
            y[:, j:].addcmul_(_without(x[:, :-j], crosses), w_WC[-1 - j])
        return y.to(x_BTC.dtype)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        x_BTC, weight, starts_BT = ctx.saved_tensors
        g, x, w_WC = grads[0].float(), x_BTC.float(), weight[:, 0].t().contiguous()
        dx, dw_WC = g * w_WC[-1], torch.zeros_like(w_WC)
        dw_WC[-1] = (g * x).sum((0, 1))
        for j, crosses in _taps(x.shape[1], weight.shape[2], starts_BT):
            dx[:, :-j].addcmul_(_without(g[:, j:], crosses), w_WC[-1 - j])
            dw_WC[-1 - j] = (g[:, j:] * _without(x[:, :-j], crosses)).sum((0, 1))
        return dx.to(x_BTC.dtype), dw_WC.t()[:, None], g.sum((0, 1)) if ctx.has_bias else None, None


def _taps(length: int, width: int, starts_BT: Tensor | None):
    """Each tap j = 1 … W - 1 that reaches a token, and (B, T - j, 1), for t = j … T - 1, where x_{t-j} is another
    document's (None: nowhere)."""
    crosses = None if starts_BT is None else torch.zeros_like(starts_BT)
    for j in range(1, min(width, length)):
        if crosses is None or starts_BT is None:
            yield j, None
        else:
            crosses = crosses[:, 1:] | starts_BT[:, 1 : length - j + 1]
            yield j, crosses[..., None]


def _without(x: Tensor, crosses: Tensor | None) -> Tensor:
    return x if crosses is None else x.masked_fill(crosses, 0)
