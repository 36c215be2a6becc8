"""Muon: momentum, then the nearest (semi-)orthogonal matrix by Newton-Schulz.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the update scaled to AdamW's usual RMS (Liu et al. 2025,
arXiv 2502.16982, equation 4), so that one learning rate serves both.

    M <- mu M + G;   O = NS5(G + mu M);   W <- (1 - lr wd) W - lr 0.2 sqrt(max(rows, cols)) O

torch.optim.Muon works in bf16, which a CPU without bf16 instructions does tens of times slower; here the
dtype is fp32 except on CUDA, and matrices of one shape are orthogonalised together as a batch. A weight that
stacks several matrices (q, k, v) is taken apart first.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """For hidden weights: matrices, and 3-D stacks of them (experts).

    Each matrix is given with the row sizes of those stacked in it (None: it is one).
    """

    def __init__(
        self,
        parameters: Iterable[tuple[nn.Parameter, tuple[int, ...] | None]],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        steps: int = 5,
    ) -> None:
        parameters = list(parameters)
        for parameter, _ in parameters:
            if parameter.ndim not in (2, 3):
                raise ValueError(
                    f"Muon is for matrices: a parameter of shape {tuple(parameter.shape)} belongs to AdamW"
                )
        self.rows = [rows or (parameter.shape[-2],) for parameter, rows in parameters]
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "steps": steps}
        super().__init__([parameter for parameter, _ in parameters], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter, rows in zip(group["params"], self.rows, strict=True):
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(parameter.grad)
                update = parameter.grad.add(momentum, alpha=group["momentum"])
                for w, u in zip(parameter.split(rows, -2), update.split(rows, -2), strict=True):
                    by_shape[w.shape[-2:]] += zip(w.view(-1, *w.shape[-2:]), u.view(-1, *u.shape[-2:]), strict=True)
            for (rows, columns), pairs in by_shape.items():
                orthogonal = newton_schulz(torch.stack([update for _, update in pairs]), group["steps"])
                scale = group["lr"] * 0.2 * math.sqrt(max(rows, columns))
                for (weight, _), update in zip(pairs, orthogonal, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=scale)
        return loss


def newton_schulz(matrices_NRC: Tensor, steps: int = 5) -> Tensor:
    """U S' V^T of each matrix, S' within about 0.7 to 1.2: five steps of x <- a x + (b x x^T + c (x x^T)^2) x."""
    a, b, c = COEFFICIENTS
    dtype = torch.bfloat16 if matrices_NRC.is_cuda else torch.float32
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x = (matrices_NRC.mT if tall else matrices_NRC).to(dtype)
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices_NRC.dtype)
