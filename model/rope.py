"""Rotary position embedding: RoFormer, Su et al. 2021, arXiv 2104.09864, section 3.2.2.

Pair i of a head of size D is turned by the angle m * theta^(-2i/D) at position m, so that a query and a key
meet with an angle that depends on their distance only. The pairs are (i, i + D/2), as in Llama's Hugging Face
weights.
"""

import torch
from torch import Tensor, nn


class Rope(nn.Module):
    """Tables of cos and sin, grown on demand, and the rotation."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta
        self._table: dict[torch.device, Tensor] = {}

    def table(self, length: int, device: torch.device) -> Tensor:
        """(2, at least `length`, D/2) float32: cos and sin of each position and pair."""
        held = self._table.get(device)
        if held is None or held.shape[1] < length:
            size = 1 << (length - 1).bit_length()
            pair = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
            angle = torch.arange(size, dtype=torch.float64)[:, None] * self.theta**-pair
            held = torch.stack((angle.cos(), angle.sin())).float().to(device)
            self._table[device] = held
        return held

    def rotate(self, x_BTHD: Tensor, positions_BT: Tensor | None = None, longest: int = 0) -> Tensor:
        """Turn queries or keys (B, T, H, D). positions None means 0 ... T-1; else `longest` bounds them."""
        if positions_BT is None:
            cos, sin = self.table(x_BTHD.shape[1], x_BTHD.device)[:, : x_BTHD.shape[1], None]
        else:
            cos, sin = self.table(longest, x_BTHD.device)[:, positions_BT][:, :, :, None]
        return _Rotation.apply(x_BTHD.float(), cos, sin).to(x_BTHD.dtype)  # type: ignore[union-attr]


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    half = x.shape[-1] // 2
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    a, b = x[..., :half], x[..., half:]
    torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=out[..., half:]).addcmul_(a, sin, value=sign)
    return out


class _Rotation(torch.autograd.Function):
    """A rotation's gradient is the rotation back: nothing of x needs to be kept."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, sin, -1.0), None, None
