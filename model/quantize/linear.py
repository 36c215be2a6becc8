"""What stands in the place of an nn.Linear whose weight is quantized, and of a stack of experts.

nn.Linear                 QuantizedLinear        int8.py and int4.py: how codes are kept and multiplied by
MoE.up (E, O, I)          Experts                E of them: each expert's run of slots by its own
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from model.quantize.grid import Codes


class QuantizedLinear(nn.Module):
    """y = x W^T + b, with W's codes; forward only, no gradient reaches W."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y_NO = self.product(x.reshape(-1, self.in_features)).to(x.dtype)
        y = y_NO.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def product(self, x_NI: Tensor) -> Tensor:
        """x W^T, (N, O), in any dtype."""
        raise NotImplementedError

    def fill(self, codes: Codes) -> None:
        """Take on these codes."""
        raise NotImplementedError

    def codes(self) -> Codes:
        """The codes, however they are kept."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """(O, I) float32: the values that the codes stand for."""
        return self.codes().decode()


class Experts(nn.ModuleList):
    """E linears without a bias: slots sorted by expert, (M, I) -> (M, O); see layers/moe.py."""

    def __init__(self, linears: Iterable[nn.Module]) -> None:
        super().__init__(linears)

    def forward(self, x_MI: Tensor, end_E: Tensor) -> Tensor:
        starts = [0, *end_E.tolist()]
        runs = zip(self, starts[:-1], starts[1:], strict=True)
        return torch.cat([expert(x_MI[start:end]) for expert, start, end in runs])


def computes_in(x: Tensor) -> torch.dtype:
    """bfloat16 where the processor multiplies in it, else float32: codes are exact in both."""
    if x.is_cuda:
        return x.dtype if x.dtype != torch.float32 else torch.bfloat16
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
