"""Attention by batched products over blocks of queries.

For documents of up to 2k tokens on a CPU with bf16: there scaled_dot_product_attention makes small products of its own,
and takes up to nearly three times as long (docs/lab.md).

    P = softmax(scale Q K^T)     dV = P^T dO     dP = dO V^T     dS = P * (dP - rowsum(P * dP))
    O = P V                      dQ = scale dS K                 dK = scale dS^T Q

FlashAttention, Dao et al. 2022, arXiv 2205.14135, section 3.1, with whole rows of scores: those of one block exist at a
time, and backward makes them again, so memory is linear in T. What blocks add up is fp32. Scores and P are rounded to
the inputs' dtype, as in attention without a fused kernel: in bf16 that costs digits in proportion to the scores, so
where they may be large SDPA, which keeps them in fp32, is taken after all.

Shapes as in attention.py; the R = C * H / K queries of a block that share a key are side by side, and N = B * K such
products are one batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.precision import has_bf16

C = 192  # queries of a block
FEWEST = 512  # queries in all; with fewer, SDPA's one call is faster
LONGEST = 2048  # keys; with more of them SDPA is as fast
LARGEST = 64.0  # bound on scores; up to it results are within 2**-6 of exact ones


def usable(q_BHTD: Tensor, k_BKSD: Tensor) -> bool:
    """Whether this is the faster way, where a query sees all keys or all up to its own."""
    B, _, T, _ = q_BHTD.shape
    fits = T > 1 and B * T >= FEWEST and k_BKSD.shape[2] <= LONGEST
    device = q_BHTD.device
    return fits and device.type == "cpu" and q_BHTD.dtype == torch.bfloat16 and has_bf16(device)[0]


@torch.library.custom_op("tokenmill::attend_in_blocks", mutates_args=())  # one operation to activation checkpointing
def attend_in_blocks(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, causal: bool, scale: float) -> Tensor:
    """(B, H, T, D), laid out as (B, T, H, D). causal: T is S, and query t sees keys 0 ... t."""
    if _large(q_BHTD, k_BKSD, scale):
        return _empty(q_BHTD).copy_(_sdpa(q_BHTD, k_BKSD, v_BKSD, causal, scale))
    out_BHTD, scores = _empty(q_BHTD), _scores(q_BHTD, k_BKSD)
    k_NSD, v_NSD = k_BKSD.flatten(0, 1), v_BKSD.flatten(0, 1)
    for at, keys in _blocks(q_BHTD, k_BKSD, causal):
        q_NRD = _rows(q_BHTD, k_BKSD, at)
        p_NRS = _probabilities(q_NRD, k_NSD[:, :keys], causal, scale, at, scores)
        _put(out_BHTD, at, torch.bmm(p_NRS, v_NSD[:, :keys]))
    return out_BHTD


def _gradients(ctx, d_BHTD: Tensor):
    q_BHTD, k_BKSD, v_BKSD = ctx.saved_tensors
    causal, scale = ctx.settings
    if _large(q_BHTD, k_BKSD, scale):
        q, k, v = tensors = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            out_BHTD = _sdpa(q, k, v, causal, scale)
        return *torch.autograd.grad(out_BHTD, tensors, d_BHTD), None, None
    dq_BHTD, dk_BKSD, dv_BKSD = _empty(q_BHTD), _empty(k_BKSD), _empty(v_BKSD)
    scores, d_scores = _scores(q_BHTD, k_BKSD), _scores(q_BHTD, k_BKSD)
    k_NSD, v_NSD = k_BKSD.flatten(0, 1), v_BKSD.flatten(0, 1)
    dk_NSD, dv_NSD = (torch.empty_like(k_NSD, dtype=torch.float32) for _ in range(2))
    for number, (at, keys) in enumerate(_blocks(q_BHTD, k_BKSD, causal)):
        q_NRD, d_NRD = _rows(q_BHTD, k_BKSD, at), _rows(d_BHTD, k_BKSD, at)
        p_NRS = _probabilities(q_NRD, k_NSD[:, :keys], causal, scale, at, scores)
        dv = torch.bmm(p_NRS.transpose(1, 2), d_NRD)
        ds_NRS = _scaled(d_NRD, v_NSD[:, :keys].transpose(1, 2), 1.0, d_scores)
        torch._softmax_backward_data(ds_NRS, p_NRS, -1, p_NRS.dtype, grad_input=ds_NRS)
        _put(dq_BHTD, at, _scaled(ds_NRS, k_NSD[:, :keys], scale))
        dk = _scaled(ds_NRS.transpose(1, 2), q_NRD, scale)
        if number:
            dk_NSD[:, :keys] += dk
            dv_NSD[:, :keys] += dv
        else:
            dk_NSD.copy_(dk)
            dv_NSD.copy_(dv)
    dk_BKSD.copy_(dk_NSD.view(k_BKSD.shape))
    dv_BKSD.copy_(dv_NSD.view(v_BKSD.shape))
    return dq_BHTD, dk_BKSD, dv_BKSD, None, None


KERNEL = torch.ops.tokenmill.attend_in_blocks.default  # what autograd and checkpointing see of it


@attend_in_blocks.register_fake
def _(q_BHTD, k_BKSD, v_BKSD, causal, scale):
    return _empty(q_BHTD)


def _save(ctx, inputs, output) -> None:
    ctx.settings = inputs[3:]
    ctx.save_for_backward(*inputs[:3])


attend_in_blocks.register_autograd(_gradients, setup_context=_save)


def _large(q_BHTD: Tensor, k_BKSD: Tensor, scale: float) -> bool:
    """Whether some score may be larger than LARGEST, by the longest query and the longest key."""
    in_order = (x.transpose(1, 2) for x in (q_BHTD, k_BKSD))  # as memory lies: the other way is four times slower
    q, k = (float(torch.linalg.vector_norm(x, dim=-1).max()) for x in in_order)
    return abs(scale) * q * k > LARGEST


def _sdpa(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, causal: bool, scale: float) -> Tensor:
    grouped = q_BHTD.shape[1] != k_BKSD.shape[1]
    return F.scaled_dot_product_attention(q_BHTD, k_BKSD, v_BKSD, is_causal=causal, scale=scale, enable_gqa=grouped)


def _blocks(q_BHTD: Tensor, k_BKSD: Tensor, causal: bool) -> list[tuple[slice, int]]:
    """(a block's queries, how many keys they may see), the last block first: it may see all."""
    T, S = q_BHTD.shape[2], k_BKSD.shape[2]
    blocks = [slice(start, min(T, start + C)) for start in range(0, T, C)]
    return [(at, at.stop if causal else S) for at in reversed(blocks)]


def _empty(x_BHTD: Tensor) -> Tensor:
    """The same shape, laid out as the rest of a layer has it, so that nobody copies a transposition."""
    B, H, T, D = x_BHTD.shape
    return x_BHTD.new_empty(B, T, H, D).transpose(1, 2)


def _scores(q_BHTD: Tensor, k_BKSD: Tensor) -> Tensor:
    """Room for the scores of any block: fresh memory for each would cost as much as its softmax."""
    B, H, T, _ = q_BHTD.shape
    return q_BHTD.new_empty(B * H * min(T, C) * k_BKSD.shape[2])


def _rows(x_BHTD: Tensor, k_BKSD: Tensor, at: slice) -> Tensor:
    """(B, H, T, D) -> (N, R, D): a block's queries."""
    return x_BHTD[:, :, at].unflatten(1, (k_BKSD.shape[1], -1)).flatten(2, 3).flatten(0, 1)


def _put(out_BHTD: Tensor, at: slice, rows_NRD: Tensor) -> None:
    block = out_BHTD[:, :, at]
    block.copy_(rows_NRD.view(block.shape))


def _scaled(a: Tensor, b: Tensor, scale: float, room: Tensor | None = None) -> Tensor:
    """scale * a @ b, rounded once, in `room` if there is one."""
    shape = (*a.shape[:2], b.shape[2])
    out = a.new_empty(shape) if room is None else room[: shape[0] * shape[1] * shape[2]].view(shape)
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def _probabilities(q_NRD: Tensor, k_NSD: Tensor, causal: bool, scale: float, at: slice, room: Tensor) -> Tensor:
    """(N, R, S): what each query of a block makes of each key."""
    p_NRS = _scaled(q_NRD, k_NSD.transpose(1, 2), scale, room)
    if causal:
        c = at.stop - at.start
        later = p_NRS.new_full((c, c), -torch.inf).triu_(1)  # added: several times faster than masked_fill_
        p_NRS.unflatten(1, (-1, c))[..., at].add_(later)
    return torch.softmax(p_NRS, -1, out=p_NRS)
