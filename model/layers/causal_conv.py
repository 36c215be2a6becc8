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
from model.state import Fixed

BLOCK = 1 << 17  # inputs that are gone through at once on a CPU: 0.5 MB


@dataclass
class ConvState(Fixed):
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
        self.absorbed(T, lengths_B, lambda n_B: self.extend(x_BTC, n_B))
        return both


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
    """Autograd would keep a masked copy of x for each tap; here x alone is kept.

    All taps of a block of tokens come before the next block, so that x is read from memory once, and nothing as large
    as x is made on the way.
    """

    @staticmethod
    def forward(ctx, x_BTC: Tensor, weight: Tensor, bias: Tensor | None, starts_BT: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BTC, weight, starts_BT)
        ctx.has_bias = bias is not None
        w_WC, taps = weight[:, 0].t().contiguous(), _taps(x_BTC.shape[1], weight.shape[2], starts_BT)
        y_BTC = torch.empty_like(x_BTC, memory_format=torch.contiguous_format)
        for begin, end in _blocks(x_BTC, weight.shape[2]):
            x = x_BTC[:, max(0, begin - len(taps)) : end].float()
            before = x.shape[1] - (end - begin)  # inputs that earlier blocks had too
            y = x[:, before:] * w_WC[-1] if bias is None else torch.addcmul(bias, x[:, before:], w_WC[-1])
            for j, crosses in enumerate(taps, 1):
                first = max(begin, j)
                past = x[:, before + first - begin - j : x.shape[1] - j]
                y[:, first - begin :].addcmul_(_without(past, crosses, first - j, end - j), w_WC[-1 - j])
            y_BTC[:, begin:end] = y
        return y_BTC

    @staticmethod
    def backward(ctx, *grads: Tensor):
        x_BTC, weight, starts_BT = ctx.saved_tensors
        w_WC, taps = weight[:, 0].t().contiguous(), _taps(x_BTC.shape[1], weight.shape[2], starts_BT)
        dx_BTC = torch.empty_like(x_BTC, memory_format=torch.contiguous_format)
        dw_WC, db_C = torch.zeros_like(w_WC), torch.zeros_like(w_WC[0])
        for begin, end in _blocks(x_BTC, weight.shape[2]):
            x, g = x_BTC[:, begin:end].float(), grads[0][:, begin : end + len(taps)].float()
            now = g[:, : end - begin]
            dx = now * w_WC[-1]
            dw_WC[-1] += (now * x).sum((0, 1))
            db_C += now.sum((0, 1))
            for j, crosses in enumerate(taps, 1):
                later = _without(g[:, j : j + end - begin], crosses, begin, end)
                n = later.shape[1]
                dx[:, :n].addcmul_(later, w_WC[-1 - j])
                dw_WC[-1 - j] += (later * _without(x[:, :n], crosses, begin, end)).sum((0, 1))
            dx_BTC[:, begin:end] = dx
        return dx_BTC, dw_WC.t()[:, None], db_C if ctx.has_bias else None, None


def _taps(length: int, width: int, starts_BT: Tensor | None) -> list[Tensor | None]:
    """Where each tap would read from another document.

    For each tap j = 1 … W - 1 that reaches a token: (B, T - j, 1), for t = j … T - 1, True where x_{t-j} is another
    document's (None: nowhere).
    """
    if starts_BT is None:
        return [None] * (min(width, length) - 1)
    taps, crosses = [], torch.zeros_like(starts_BT)
    for j in range(1, min(width, length)):
        crosses = crosses[:, 1:] | starts_BT[:, 1 : length - j + 1]
        taps.append(crosses[..., None])
    return taps


def _without(x_BTC: Tensor, crosses: Tensor | None, begin: int, end: int) -> Tensor:
    """x of the tokens from `begin` to `end` that a tap reaches, 0 where it would cross."""
    return x_BTC if crosses is None else x_BTC.masked_fill(crosses[:, begin:end], 0)


def _blocks(x_BTC: Tensor, width: int) -> list[tuple[int, int]]:
    """Tokens to go through at once: on a CPU, what its cache holds, though no fewer than there are taps."""
    B, T, C = x_BTC.shape
    size = max(width, BLOCK // (B * C)) if x_BTC.device.type == "cpu" else T
    return [(begin, min(begin + size, T)) for begin in range(0, T, size)]
