"""INT8 linears: LLM.int8()'s vector-wise scales (Dettmers et al. 2022, arXiv 2208.07339, section 3.1), no outliers.

weight-only   y = (x codes^T) * scale_O                              products in bf16: torch's _weight_int8pack_mm
dynamic       x ~ scale_N * codes, found anew for each token         products of int8 by int8, summed in int32

FBGEMM's dynamic product is faster still than torch._int_mm (1.3 to 1.6 times), but has one scale for all rows of a
batch: what a row becomes would depend on its company.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.quantize.grid import Codes
from model.quantize.linear import QuantizedLinear, computes_in

# Rows up to which the product that reads codes is faster than one with the unpacked matrix, in microseconds on one
# core with AVX512-bf16, 2048 x 768: 1 row 82 and 329 (fp32 127, bf16 130), 16 rows 637 and 528 (fp32 725, bf16 322).
FEW = 8


class Int8Linear(QuantizedLinear):
    """dynamic: activations are rounded to INT8 too, each token by its own scale."""

    def __init__(self, inputs: int, outputs: int, bias: bool, dynamic: bool = False) -> None:
        super().__init__(inputs, outputs, bias)
        self.dynamic = dynamic
        self.code_OI: Tensor
        self.scale_O: Tensor
        self.register_buffer("code_OI", torch.empty(outputs, inputs, dtype=torch.int8))
        self.register_buffer("scale_O", torch.empty(outputs))

    def product(self, x_NI: Tensor) -> Tensor:
        if self.dynamic:
            return self._dynamic(x_NI)
        x_NI = x_NI.to(computes_in(x_NI))
        if x_NI.dtype == torch.bfloat16 and x_NI.device.type == "cpu" and len(x_NI) <= FEW:
            return torch._weight_int8pack_mm(x_NI.contiguous(), self.code_OI, self.scale_O.bfloat16())
        return F.linear(x_NI, self.code_OI.to(x_NI.dtype)) * self.scale_O.to(x_NI.dtype)

    def _dynamic(self, x_NI: Tensor) -> Tensor:
        x_NI = x_NI.float()
        tiny = torch.finfo(torch.float32).tiny
        scale_N1 = (x_NI.abs().amax(1, keepdim=True) / 127).clamp_min(tiny)
        code_NI = (x_NI / scale_N1).round().to(torch.int8)
        if x_NI.is_cuda and len(x_NI) <= 16:  # its kernel wants more than 16 rows
            code_NI = F.pad(code_NI, (0, 0, 0, 17 - len(x_NI)))
        sum_NO = torch._int_mm(code_NI, self.code_OI.t())[: len(x_NI)]
        return sum_NO * scale_N1 * self.scale_O.float()

    def fill(self, codes: Codes) -> None:
        self.code_OI.copy_(codes.code_OI)
        self.scale_O.copy_(codes.scale_ON[:, 0])

    def codes(self) -> Codes:
        return Codes(self.code_OI, self.scale_O.float()[:, None], None)
