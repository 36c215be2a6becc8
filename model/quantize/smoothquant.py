"""SmoothQuant: Xiao et al. 2022, arXiv 2211.10438, section 4 and equation 4.

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

A few channels of activations are far larger than the others, and a token's INT8 grid has to span them. Dividing them
by s, and multiplying the weights, shares the difficulty between both. The scales are folded as AWQ's are (scaling.py).
"""

import torch
from torch import Tensor

from model.quantize.scaling import Fold, Seen

ALPHA = 0.5  # the paper's "sweet spot" for most models


@torch.no_grad()
def smooth_scale(fold: Fold, seen: Seen, alpha: float = ALPHA) -> Tensor:
    """(I,); ones for channels that nothing came through."""
    weight_I = torch.stack([linear.weight.abs().amax(0) for linear in fold.tried]).amax(0).clamp_min(1e-5)
    scale_I = seen.largest_I.clamp_min(1e-5).pow(alpha) / weight_I.pow(1 - alpha)
    return torch.where(seen.largest_I > 0, scale_I.clamp_min(1e-5), 1.0)
