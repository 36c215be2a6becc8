"""State space duality by chunks: the scan of Mamba-2; Dao & Gu 2024, arXiv 2405.21060, section 6. For each head:

    h_t = exp(a_t) h_{t-1} + B_t x_t^T,   y_t = C_t^T h_t,   a_t <= 0

With s the sums of a within a chunk of L tokens, and H the state that enters it:

    y_i = sum over j <= i of  exp(s_i - s_j) (C_i . B_j) x_j   +   exp(s_i) C_i^T H        dense, L x L, for all chunks
    H'  = exp(s_L) H + sum over j of  exp(s_L - s_j) B_j x_j^T                             the state that leaves it

so time and memory are linear in T. The gradient is written out, for two reasons. Nothing L x L is kept: those are made
again in `backward`, a block of chunks at a time, so that they stay in a CPU's cache however long the text is. And the
decays' gradient needs none of them: with g the gradients of y, and dH' of H',

    ds_i = g_i . y_i - x_i . dx_i,  and at the chunk's end  dH' . H'  more,  as every path through s scales with exp(s)

Shapes: R rows, T tokens; K chunks of L; G groups of E heads that share B and C; states (N, P). All float32: bf16 would
not do for ds, a difference of like terms.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 512  # tokens of all rows whose L x L products are made at once on a CPU: about its L2 cache


def ssd(
    x_RTGEP: Tensor, a_RTGE: Tensor, B_RTGN: Tensor, C_RTGN: Tensor, chunk: int, h_RGNEP: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y (R, T, G, E, P) and the last h (R, G, N, E, P) of rows of one document, from h (None: 0)."""
    R, T, G, E, P = x_RTGEP.shape
    L = min(chunk, T)
    if h_RGNEP is None:
        h_RGNEP = x_RTGEP.new_zeros(R, G, B_RTGN.shape[-1], E, P, dtype=torch.float32)
    parts = [_chunks(part.float(), L) for part in (x_RTGEP, a_RTGE, B_RTGN, C_RTGN)]
    y, h = _SSD.apply(*parts, h_RGNEP)  # type: ignore[misc]
    return y.flatten(1, 2)[:, :T], h


def _chunks(part_RTX: Tensor, length: int) -> Tensor:
    """(R, T, …) -> (R, K, L, …); zeros after the last token leave the state as it is (a = 0, x = 0)."""
    missing = -part_RTX.shape[1] % length
    if missing:
        part_RTX = F.pad(part_RTX, (0, 0) * (part_RTX.ndim - 2) + (0, missing))
    return part_RTX.unflatten(1, (-1, length))


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, a: Tensor, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        R, K = x.shape[:2]
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        H = x.new_empty(R, K + 1, *h.shape[1:3], math.prod(h.shape[3:]))  # enters chunk k; the last one leaves
        H[:, 0] = h.flatten(3)
        with torch.autocast(x.device.type, enabled=False):
            for at in _blocks(x):
                block = _Block(x[:, at], a[:, at], B[:, at], C[:, at])
                added = block.B_GLN.mT @ block.side_by_side(block.x * block.to_end)
                for k in range(at.start, at.stop):
                    torch.addcmul(added[:, k - at.start], block.whole[:, k - at.start], H[:, k], out=H[:, k + 1])
                recalled = block.heads(block.C_GLN @ H[:, at]).mul_(block.from_start)
                y[:, at] = recalled.add_(block.back(block.scores() @ block.x_GELP))
        ctx.save_for_backward(x, a, B, C, y, H)
        return y, H[:, -1].view(h.shape).clone()

    @staticmethod
    def backward(ctx, *grads: Tensor):
        x, a, B, C, y, H = ctx.saved_tensors
        g, dh = grads[0], grads[1].flatten(3)
        dx, da, dB, dC = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, a, B, C))
        with torch.autocast(x.device.type, enabled=False):
            for at in reversed(list(_blocks(x))):
                block = _Block(x[:, at], a[:, at], B[:, at], C[:, at])
                g_k, g_GELP = g[:, at], g[:, at].permute(0, 1, 3, 4, 2, 5)
                g_recalled = block.side_by_side(g_k * block.from_start)
                d_enters = block.C_GLN.mT @ g_recalled
                dH = torch.empty_like(d_enters)  # of the state that leaves each chunk
                for k in reversed(range(dH.shape[1])):
                    dH[:, k] = dh
                    dh = torch.addcmul(d_enters[:, k], block.whole[:, k], dh)
                dx_k = block.heads(block.B_GLN @ dH).mul_(block.to_end)
                scores_GELL = block.scores()
                dx_k.add_(block.back(scores_GELL.mT @ g_GELP))
                d_pairs_GLL = (g_GELP @ block.x_GELP.mT).mul_(block.decay()).sum(3)
                dC[:, at] = (d_pairs_GLL @ block.B_GLN + g_recalled @ H[:, at].mT).transpose(2, 3)
                weighted = block.side_by_side(block.x * block.to_end)
                dB[:, at] = (d_pairs_GLL.mT @ block.C_GLN + weighted @ dH.mT).transpose(2, 3)
                ds = (g_k * y[:, at]).sum(-1) - (block.x * dx_k).sum(-1)
                leaves = H[:, at.start + 1 : at.stop + 1]
                ds[:, :, -1] += (dH * leaves).unflatten(-1, x.shape[-2:]).sum((3, 5))
                dx[:, at] = dx_k
                da[:, at] = ds.flip(2).cumsum(2).flip(2)
        return dx, da, dB, dC, dh.view(dh.shape[0], *H.shape[2:4], *x.shape[-2:])


def _blocks(x_RKLGEP: Tensor) -> Iterator[slice]:
    R, K, L = x_RKLGEP.shape[:3]
    size = max(1, BLOCK // (R * L)) if x_RKLGEP.device.type == "cpu" else K
    return (slice(k, min(k + size, K)) for k in range(0, K, size))


class _Block:
    """Some chunks: what both directions need of them. W = E P is a group's heads side by side."""

    def __init__(self, x_RKLGEP: Tensor, a_RKLGE: Tensor, B_RKLGN: Tensor, C_RKLGN: Tensor) -> None:
        self.x, self.sums = x_RKLGEP, a_RKLGE.cumsum(2)
        self.x_GELP = x_RKLGEP.permute(0, 1, 3, 4, 2, 5)
        self.B_GLN, self.C_GLN = B_RKLGN.transpose(2, 3), C_RKLGN.transpose(2, 3)
        end = self.sums[:, :, -1:]
        self.from_start, self.to_end = self.sums.exp()[..., None], (end - self.sums).exp()[..., None]
        whole_RKGE = end[:, :, 0].exp()[..., None].expand(*end.shape[:2], *x_RKLGEP.shape[3:])
        self.whole = whole_RKGE.flatten(3)[:, :, :, None]  # (R, K, G, 1, W)

    def decay(self) -> Tensor:
        """exp(s_i - s_j) for i >= j, else 0: (R, K, G, E, L, L). Masked first: exp for a later j could be infinite."""
        s = self.sums.permute(0, 1, 3, 4, 2)
        later = torch.ones(s.shape[-1], s.shape[-1], dtype=torch.bool, device=s.device).triu(1)
        return (s[..., :, None] - s[..., None, :]).masked_fill_(later, -math.inf).exp_()

    def scores(self) -> Tensor:
        """exp(s_i - s_j) (C_i . B_j): (R, K, G, E, L, L)."""
        return self.decay().mul_((self.C_GLN @ self.B_GLN.mT)[:, :, :, None])

    @staticmethod
    def side_by_side(x_RKLGEP: Tensor) -> Tensor:
        """(R, K, G, L, W)"""
        return x_RKLGEP.transpose(2, 3).flatten(4)

    def heads(self, x_RKGLW: Tensor) -> Tensor:
        """`side_by_side` undone."""
        return x_RKGLW.unflatten(-1, self.x.shape[-2:]).transpose(2, 3)

    @staticmethod
    def back(x_RKGELP: Tensor) -> Tensor:
        """(R, K, L, G, E, P)"""
        return x_RKGELP.permute(0, 1, 4, 2, 3, 5)
