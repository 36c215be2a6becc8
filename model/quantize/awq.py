"""AWQ: activation-aware weight quantization; Lin et al. 2023, arXiv 2306.00978, section 3.2.

    s = mean|x|^alpha        alpha in [0, 1] minimises  || Q(W diag(s)) diag(s)^-1 X - W X ||       equations 4 and 5

Channels with large activations get a finer grid. The error is taken from the inputs' Hessian instead of from X itself.
The scales are folded into what makes the activations (scaling.py), and then weights are rounded to nearest.
"""

import torch
from torch import Tensor

from model.quantize.grid import Bits, bits_for, round_to_nearest
from model.quantize.scaling import Fold, Seen

STEPS = 20  # of alpha


@torch.no_grad()
def awq_scale(fold: Fold, seen: Seen, bits: Bits, group_size: int) -> Tensor:
    """(I,): the best of the scales that are tried, ones among them."""
    H, mean_I = seen.mean(), seen.mean_I.clamp_min(1e-5)
    best, error = torch.ones_like(mean_I), float("inf")
    for step in range(STEPS):
        scale_I = mean_I.pow(step / STEPS)
        scale_I = scale_I / (scale_I.max() * scale_I.min()).sqrt()
        now = sum(rounding_error(linear.weight, scale_I, H, bits, group_size) for linear in fold.tried)
        if now < error:
            best, error = scale_I, now
    return best


def rounding_error(weight_OI: Tensor, scale_I: Tensor, H: Tensor, bits: Bits, group_size: int) -> float:
    """The outputs' summed squared error, as gptq.objective, of a matrix that is rounded after it was scaled."""
    kept = bits_for(bits, weight_OI.shape[1], group_size)
    D = round_to_nearest(weight_OI * scale_I, kept, group_size).decode() / scale_I - weight_OI
    return float(((D @ H) * D).sum())
