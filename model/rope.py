"""Rotary position embedding: RoFormer, Su et al. 2021, arXiv 2104.09864, section 3.2.2 and equation 34.

    (x_2i + j x_2i+1)  ->  (x_2i + j x_2i+1) * exp(j m theta^(-2i/D))      at position m, for each pair i

so that a query and a key meet with an angle that depends on their distance only. Neighbours are a pair, as in the
paper: the rotation is one complex product over memory as it lies, several times faster on a CPU than with the pairs
(i, i + D/2) of Hugging Face's weights, which `interop` gets by permuting rows.
"""

import torch
from torch import Tensor, nn


class Rope(nn.Module):
    """The table of exp(j m theta^(-2i/D)), grown on demand, and the rotation."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta
        self._tables: dict[torch.device, Tensor] = {}

    def table(self, length: int, device: torch.device) -> Tensor:
        """(at least `length`, D/2) complex64: each position's and pair's unit number, exact to float32."""
        held = self._tables.get(device)
        if held is None or held.shape[0] < length:
            size = 1 << (length - 1).bit_length()
            frequency = self.theta ** -(torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim)
            angle = torch.arange(size, dtype=torch.float64)[:, None] * frequency
            held = torch.polar(torch.ones_like(angle), angle).to(torch.complex64).to(device)
            self._tables[device] = held
        return held

    def rotate(self, x_BTHD: Tensor, positions_BT: Tensor | None = None, longest: int = 0) -> Tensor:
        """Turn queries or keys (B, T, H, D). positions None means 0 ... T-1; else `longest` exceeds them all."""
        if positions_BT is None:
            turn = self.table(x_BTHD.shape[1], x_BTHD.device)[: x_BTHD.shape[1], None]
        else:
            turn = self.table(longest, x_BTHD.device)[positions_BT][:, :, None]
        pairs = torch.view_as_complex(x_BTHD.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2).to(x_BTHD.dtype)
