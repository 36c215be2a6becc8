"""The linear recurrence h_t = a_t h_{t-1} + b_t, elementwise, without a loop over T.

    chunks of L tokens:  | 1 2 … L | 1 2 … L | 1 2 … L |
    1. every chunk at once, from h = 0: its last h, and the product of its a
    2. these two are a recurrence over chunks: the same again, T / L long
    3. every chunk at once, from the h that enters it: all h_t

2 L steps a level and log_L(T) levels (Blelloch 1990's scan with a large radix): all are elementwise on whole chunks, no
logarithm and no division appears, so nothing overflows that the plain recurrence keeps finite. Memory is read about
five times; log-depth doubling would read it 2 log2(T) times.

The gradient is the same recurrence from the end to the beginning:  dh_t = g_t + a_{t+1} dh_{t+1},  db_t = dh_t,
da_t = dh_t h_{t-1}; only a and h are kept for it.

Shapes: R rows, T tokens, X any more axes; Q chunks of all rows, L tokens of a chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 32


def linear_scan(a_RTX: Tensor, b_RTX: Tensor, starts_RT: Tensor | None = None) -> Tensor:
    """All h_t (R, T, X) of h_t = a_t h_{t-1} + b_t from h = 0, float32.

    a may have size 1 where b has more (one decay for several channels). Where `starts_RT` is True, h_t = b_t, whatever
    came before, be it infinite.
    """
    if starts_RT is not None:
        starts_RT = starts_RT.reshape(*starts_RT.shape, *(1,) * (b_RTX.ndim - 2))
    return _LinearScan.apply(a_RTX, b_RTX, starts_RT)  # type: ignore[return-value]


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, starts: Tensor | None) -> Tensor:
        h = _scan(a, b, starts, reverse=False)
        ctx.save_for_backward(a, h, starts)
        return h

    @staticmethod
    def backward(ctx, *grads: Tensor):
        a, h, starts = ctx.saved_tensors
        dh = _scan(_later(a), grads[0], None if starts is None else _later(starts), reverse=True)
        da = torch.zeros_like(h)
        torch.mul(dh[:, 1:], h[:, :-1], out=da[:, 1:])
        if starts is not None:
            da.masked_fill_(starts, 0)
        return da.sum_to_size(a.shape), dh, None


def _later(x_RTX: Tensor) -> Tensor:
    """x_{t+1} at t."""
    return torch.cat((x_RTX[:, 1:], torch.zeros_like(x_RTX[:, :1])), 1)


def _scan(a: Tensor, b: Tensor, starts: Tensor | None, reverse: bool) -> Tensor:
    R, T = b.shape[:2]
    if T <= 2 * CHUNK:
        return _walk(a, b, starts, torch.zeros_like(b[:, 0]), reverse)
    n = -(-T // CHUNK)
    a_QLX, b_QLX = _chunked(a, n), _chunked(b, n)
    starts_QLX = None if starts is None else _chunked(starts, n)
    end_QX = torch.zeros_like(b_QLX[:, 0])
    for t in _order(CHUNK, reverse):
        end_QX = torch.addcmul(b_QLX[:, t], a_QLX[:, t], _reset(end_QX, starts_QLX, t))
    product_RnX = a_QLX.prod(1).unflatten(0, (R, n))
    cut_RnX = None if starts_QLX is None else starts_QLX.any(1).unflatten(0, (R, n))
    ends_RnX = _scan(product_RnX, end_QX.unflatten(0, (R, n)), cut_RnX, reverse)
    enters_RnX = torch.zeros_like(ends_RnX)
    if reverse:
        enters_RnX[:, :-1] = ends_RnX[:, 1:]
    else:
        enters_RnX[:, 1:] = ends_RnX[:, :-1]
    h_QLX = _walk(a_QLX, b_QLX, starts_QLX, enters_RnX.flatten(0, 1), reverse)
    return h_QLX.unflatten(0, (R, n)).flatten(1, 2)[:, :T]


def _chunked(x_RTX: Tensor, n: int) -> Tensor:
    """(R, T, X) -> (R * n, L, X), with zeros after the last token."""
    R, T = x_RTX.shape[:2]
    if n * CHUNK > T:
        x_RTX = F.pad(x_RTX, (0, 0) * (x_RTX.ndim - 2) + (0, n * CHUNK - T))
    return x_RTX.reshape(R * n, CHUNK, *x_RTX.shape[2:])


def _walk(a: Tensor, b: Tensor, starts: Tensor | None, h: Tensor, reverse: bool) -> Tensor:
    """The recurrence itself, token by token, from the h that enters."""
    out = torch.empty_like(b)
    for t in _order(b.shape[1], reverse):
        h = torch.addcmul(b[:, t], a[:, t], _reset(h, starts, t), out=out[:, t])
    return out


def _order(length: int, reverse: bool) -> range:
    return range(length - 1, -1, -1) if reverse else range(length)


def _reset(h: Tensor, starts: Tensor | None, t: int) -> Tensor:
    return h if starts is None else h.masked_fill(starts[:, t], 0)
