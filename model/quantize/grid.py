"""The grids that weights are rounded to: INT8 with a scale for each output channel, INT4 with one for each group.

    int8   w ~ scale * code             code -127 … 127     a scale for each row of W (O, I)
    int4   w ~ scale * code + zero      code   -8 … 7       a scale and a zero for each group of G columns of a row

Scales and zeros are rounded to bfloat16 before the codes are found, so that products in any dtype use the same grid.
Shapes: O outputs, I inputs, G inputs of a group, N groups of a row.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Bits = Literal["int8", "int4"]


class Grid(NamedTuple):
    """The values that some columns' weights may have; scale and zero are (O, 1), float32."""

    scale: Tensor
    zero: Tensor
    low: int
    high: int

    def encode(self, weight_OG: Tensor) -> Tensor:
        """The nearest codes (O, G), as float32: round to nearest, RTN."""
        return ((weight_OG - self.zero) / self.scale).round().clamp(self.low, self.high)

    def decode(self, code_OG: Tensor) -> Tensor:
        return code_OG * self.scale + self.zero


class Codes(NamedTuple):
    """A quantized matrix: int8 codes (O, I), float32 scales and zeros (O, N); zeros is None for int8."""

    code_OI: Tensor
    scale_ON: Tensor
    zero_ON: Tensor | None

    def decode(self) -> Tensor:
        """The float32 matrix (O, I) that is stood for."""
        group = self.code_OI.shape[1] // self.scale_ON.shape[1]
        value = self.code_OI.float() * self.scale_ON.repeat_interleave(group, 1)
        return value if self.zero_ON is None else value + self.zero_ON.repeat_interleave(group, 1)


def grid_of(weight_OG: Tensor, bits: Bits) -> Grid:
    """The grid that spans these columns' weights, row by row."""
    tiny = torch.finfo(torch.float32).tiny
    if bits == "int8":
        scale = _rounded(weight_OG.abs().amax(1, keepdim=True) / 127).clamp_min(tiny)
        return Grid(scale, torch.zeros_like(scale), -127, 127)
    low, high = weight_OG.amin(1, keepdim=True), weight_OG.amax(1, keepdim=True)
    scale = _rounded((high - low) / 15).clamp_min(tiny)
    return Grid(scale, _rounded(low + 8 * scale), -8, 7)


def _rounded(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def bits_for(bits: Bits, inputs: int, group_size: int) -> Bits:
    """What a matrix of so many inputs can have: INT8 where groups of `group_size` don't come out even."""
    return "int8" if bits == "int4" and inputs % group_size else bits


def grids(weight_OI: Tensor, bits: Bits, group_size: int) -> list[Grid]:
    """A grid for each group of columns, in order; one for all of them for int8."""
    width = group_size if bits == "int4" else weight_OI.shape[1]
    return [grid_of(part, bits) for part in weight_OI.float().split(width, 1)]


def collect(code_OI: Tensor, of: list[Grid], bits: Bits) -> Codes:
    zeros = torch.cat([g.zero for g in of], 1) if bits == "int4" else None
    return Codes(code_OI.to(torch.int8), torch.cat([g.scale for g in of], 1), zeros)


def round_to_nearest(weight_OI: Tensor, bits: Bits, group_size: int) -> Codes:
    """RTN: each weight to the nearest value of its grid, without a look at the data."""
    found = grids(weight_OI, bits, group_size)
    parts = weight_OI.float().chunk(len(found), 1)
    codes = [grid.encode(part) for grid, part in zip(found, parts, strict=True)]
    return collect(torch.cat(codes, 1), found, bits)
