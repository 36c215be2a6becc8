"""Next-token prediction: cross-entropy in chunks of tokens, so that all logits never exist at once.

    loss_sum = sum over valid tokens of  w * (logsumexp(z) - z[target]  + z_loss * logsumexp(z)^2),   z = cap(W h)

z-loss: PaLM (Chowdhery et al. 2022, section 5). The gradient of a sum is known as soon as a chunk's logits are, so
`forward` makes the gradients of h and W beside the loss and drops the logits: three matrix products, none repeated.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from model.config import ModelConfig
from model.decoder import Decoder
from model.segments import Segments
from model.softcap import slope, softcap_
from model.train_config import TrainConfig

IGNORE = -100
CHUNK_ROWS = 512  # tokens whose logits a CPU makes at once, or a quarter where they are more than
CHUNK_ELEMENTS = 1 << 24  # logits, 64 MB; a GPU makes twice that, of at least CHUNK_ROWS tokens
HALF_TIMES = 4  # so many times more of both in half precision on a CPU: the weight's gradient is cast for each chunk
WIDE_ELEMENTS = 1 << 20  # half-precision logits of which a CPU takes the softmax at once: fp32, they fit in its cache


class Batch(NamedTuple):
    """Rows of packed documents, all (B, T) int64.

    targets are the next tokens, IGNORE (-100) where there is no loss; positions restart at 0 with each document.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    positions_BT: Tensor


class NextToken:
    """The objective `next_token`; see registry.py for the interface."""

    def __init__(self, train: TrainConfig, model: ModelConfig, seed: int = 0) -> None:
        self.z_loss = train.z_loss

    def batch(self, rows: Batch, samples_B: Tensor) -> Batch:
        return rows

    def loss(self, decoder: Decoder, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return next_token(decoder, batch, z_loss=self.z_loss)


def next_token(model: Decoder, batch: Batch, *, z_loss: float = 0.0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The objective of pretraining and of fine-tuning: (loss_sum, n_valid, {})."""
    hidden_BTD, _ = model(batch.tokens_BT, segments=Segments.from_positions(batch.positions_BT))
    loss, n_valid = cross_entropy(
        hidden_BTD.flatten(0, 1),
        model.head_weight,
        batch.targets_BT.flatten(),
        model.config.logit_softcap,
        z_loss,
    )
    return loss, n_valid, {}


def chunk_rows(vocab_size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> int:
    """How many tokens' logits to make at once."""
    if device.type == "cpu":
        times = 1 if dtype == torch.float32 else HALF_TIMES
        return max(CHUNK_ROWS // 4, times * min(CHUNK_ROWS, CHUNK_ELEMENTS // vocab_size))
    return max(CHUNK_ROWS, 2 * CHUNK_ELEMENTS // vocab_size)


def wide_rows(chunk: int, vocab_size: int, device: torch.device) -> int:
    """Of how many tokens in a chunk, whose logits are half precision, to take the softmax at once."""
    return min(chunk, max(1, WIDE_ELEMENTS // vocab_size)) if device.type == "cpu" else chunk


def logits_bytes(rows: int, vocab_size: int, device: torch.device, dtype: torch.dtype, capped: bool = False) -> int:
    """What the logits of a loss over `rows` tokens take, and the slopes of their soft-cap if there is one."""
    chunk = min(rows, chunk_rows(vocab_size, device, dtype))
    wide = chunk if dtype == torch.float32 else wide_rows(chunk, vocab_size, device)
    half = 0 if dtype == torch.float32 else chunk
    return vocab_size * (half * dtype.itemsize + wide * 4 * (1 + capped))


def cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    softcap: float | None = None,
    z_loss: float = 0.0,
    weights_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(sum of the losses of valid tokens, float32 scalar; number of valid tokens, int64 scalar).

    weights_N: float32, what each token's loss is multiplied by; None: 1. They get no gradient.
    """
    if torch.is_autocast_enabled(hidden_ND.device.type):
        dtype = torch.get_autocast_dtype(hidden_ND.device.type)
        hidden_ND = hidden_ND.to(dtype)
    if not torch.is_grad_enabled():  # inside the function the grad mode is always off
        hidden_ND, weight_VD = hidden_ND.detach(), weight_VD.detach()
    loss = _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, targets_N, softcap, z_loss, weights_N)
    return loss, (targets_N != IGNORE).sum()  # type: ignore[return-value]


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, softcap, z_loss, weights_N):
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        need = need_hidden or need_weight
        (V, _), device, dtype = weight_VD.shape, hidden_ND.device, hidden_ND.dtype
        w_VD = weight_VD.to(dtype)
        d_hidden = torch.zeros_like(hidden_ND) if need_hidden else None
        d_weight = None
        total = torch.zeros((), dtype=torch.float32, device=device)
        valid = targets_N != IGNORE
        rows = None if bool(valid.all()) else valid.nonzero().squeeze(1)
        count = targets_N.shape[0] if rows is None else rows.shape[0]
        chunk = max(1, min(count, chunk_rows(V, device, dtype)))
        exact = dtype == torch.float32
        # One buffer for all chunks: touching fresh pages costs a CPU as much as the softmax does.
        logits = torch.empty(chunk, V, dtype=dtype, device=device)
        size = chunk if exact else wide_rows(chunk, V, device)
        wide = logits if exact else torch.empty(size, V, dtype=torch.float32, device=device)
        for start in range(0, count, chunk):
            at = slice(start, start + chunk) if rows is None else rows[start : start + chunk]
            h, targets = hidden_ND[at], targets_N[at]
            weights = None if weights_N is None else weights_N[at]
            dz = torch.mm(h, w_VD.t(), out=logits[: h.shape[0]])  # logits first, their gradients after
            for first in range(0, h.shape[0], size):
                part = slice(first, first + size)
                target, weight = targets[part], None if weights is None else weights[part]
                z = dz[part] if exact else wide[: target.shape[0]].copy_(dz[part])
                losses, z = _losses(z, target, softcap, z_loss, need)
                total += losses.sum() if weight is None else (losses * weight).sum()  # autocast would round a product
                if need and weight is not None:
                    z *= weight[:, None]
                if need and not exact:
                    dz[part] = z
            if d_hidden is not None:
                d_hidden[at] = dz @ w_VD
            if need_weight and d_weight is None:
                d_weight = dz.t() @ h
            elif d_weight is not None and exact:
                d_weight.addmm_(dz.t(), h)
            elif d_weight is not None:
                d_weight = d_weight.float().add_(dz.t() @ h)
        if need_weight and d_weight is None:
            d_weight = torch.zeros_like(w_VD)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx, *grads):
        d_hidden, d_weight = ctx.saved_tensors
        scale = grads[0]
        if d_weight is not None and d_weight.dtype != ctx.weight_dtype:
            d_weight = d_weight.to(ctx.weight_dtype).mul_(scale)
        elif d_weight is not None:
            d_weight = d_weight * scale
        return (
            None if d_hidden is None else d_hidden * scale.to(d_hidden.dtype),
            d_weight,
            None,
            None,
            None,
            None,
        )


def _losses(z: Tensor, target: Tensor, softcap: float | None, z_loss: float, slopes: bool) -> tuple[Tensor, Tensor]:
    """(each token's loss; their gradients by the logits, in the place of `z`, if `slopes` are wanted)."""
    z = softcap_(z, softcap)
    picked = z.gather(1, target[:, None]).squeeze(1)
    steep = slope(z, softcap) if softcap is not None and slopes else None
    largest = z.amax(1)
    p = torch.softmax(z, 1, out=z)  # one fused pass; the largest p is at least 1 / V, so its log is exact
    lse = largest - p.amax(1).log_()
    losses = lse - picked + z_loss * lse.square() if z_loss else lse - picked
    if slopes:
        if z_loss:
            p *= (1 + 2 * z_loss * lse)[:, None]
        p[torch.arange(target.shape[0], device=p.device), target] -= 1
        if steep is not None:
            p *= steep
    return losses, p
