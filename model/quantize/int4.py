"""INT4 linears: groups of G inputs share a scale and a zero, two codes lie in a byte.

    y_o = sum over groups n of  sum over i in n of  x_i (scale_on code_oi + zero_on)

On a CPU torch's product reads codes in an order of its own (_weight_int4pack_mm_for_cpu, in bf16), packed at the first
use and kept; elsewhere, and for many rows, the matrix is unpacked and multiplied by.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.quantize.grid import Codes
from model.quantize.linear import QuantizedLinear, computes_in

MULTIPLE = 16  # of outputs: what the packed product takes
FEW = 128  # rows of it; above, unpacking the matrix is cheaper (2048 x 768: 81 us for 1 row, 578 for 16, on one core)


class Int4Linear(QuantizedLinear):
    """group_size: G, a divisor of the inputs."""

    def __init__(self, inputs: int, outputs: int, bias: bool, group_size: int) -> None:
        super().__init__(inputs, outputs, bias)
        self.group_size = group_size
        self.packed_OJ: Tensor
        self.scale_ON: Tensor
        self.zero_ON: Tensor
        self.register_buffer("packed_OJ", torch.empty(outputs, inputs // 2, dtype=torch.uint8))
        self.register_buffer("scale_ON", torch.empty(outputs, inputs // group_size))
        self.register_buffer("zero_ON", torch.empty(outputs, inputs // group_size))
        self._cpu: tuple[Tensor, Tensor] | None = None  # the packed product's own order, of these very codes

    def product(self, x_NI: Tensor) -> Tensor:
        x_NI = x_NI.to(computes_in(x_NI))
        here = x_NI.dtype == torch.bfloat16 and x_NI.device.type == "cpu"
        if here and len(x_NI) <= FEW and self.out_features % MULTIPLE == 0 and self.group_size in (32, 64, 128, 256):
            if self._cpu is None:
                self._cpu = self._for_cpu()
            codes, scale_and_zero = self._cpu
            return torch._weight_int4pack_mm_for_cpu(x_NI.contiguous(), codes, self.group_size, scale_and_zero)
        return F.linear(x_NI, self.weight.to(x_NI.dtype))

    def _for_cpu(self) -> tuple[Tensor, Tensor]:
        codes = torch._convert_weight_to_int4pack_for_cpu(unpack(self.packed_OJ).int() + 8, 1)
        scale_and_zero = torch.stack([self.scale_ON.T, self.zero_ON.T], 2)  # (N, O, 2)
        return codes, scale_and_zero.bfloat16().contiguous()

    def fill(self, codes: Codes) -> None:
        assert codes.zero_ON is not None
        self.packed_OJ.copy_(pack(codes.code_OI))
        self.scale_ON.copy_(codes.scale_ON)
        self.zero_ON.copy_(codes.zero_ON)
        self._cpu = None

    def codes(self) -> Codes:
        return Codes(unpack(self.packed_OJ), self.scale_ON.float(), self.zero_ON.float())

    def _load_from_state_dict(self, *args, **options) -> None:
        super()._load_from_state_dict(*args, **options)
        self._cpu = None

    def _apply(self, fn, recurse: bool = True):
        self._cpu = None
        return super()._apply(fn, recurse)


def pack(code_OI: Tensor) -> Tensor:
    """int8 codes from -8 to 7, (O, I) -> bytes (O, I/2): even inputs in the low four bits."""
    byte = (code_OI + 8).to(torch.uint8)
    return byte[:, 0::2] | (byte[:, 1::2] << 4)


def unpack(packed_OJ: Tensor) -> Tensor:
    """The inverse of `pack`."""
    pairs = torch.stack([packed_OJ & 15, packed_OJ >> 4], 2).flatten(1)
    return pairs.to(torch.int8) - 8
