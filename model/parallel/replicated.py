"""Every rank holds the whole model: one all-reduce of one flat fp32 buffer per step.

    [ gradients of all parameters | scalars of the step, TAIL | loads of the experts ]

What ranks must agree on (loss, valid tokens, the wish to stop) travels in the same buffer as the gradients, so a step
has one collective of one size, and no rank can act on a number that another doesn't have.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

TAIL = 64  # scalars of a step after the gradients: 7 of the trainer's, the rest for an objective's extras
COUNT = 4096  # counts are reduced as two fp32 digits in this base, so that they stay exact


class Replicated:
    """The gradients of a step.

    Every parameter's `grad` is a view of `flat`, part of one buffer with the step's scalars (`tail`) and its experts'
    `loads` after it.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], device: torch.device, n_loads: int) -> None:
        self.parameters = parameters
        sizes = [p.numel() for p in parameters]
        self.buffer = torch.zeros(sum(sizes) + TAIL + n_loads, device=device)
        self.flat, self.tail, self.loads = self.buffer.split([sum(sizes), TAIL, n_loads])
        for parameter, part in zip(parameters, self.flat.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    def zero(self) -> None:
        self.buffer.zero_()

    def reduce(self, scalars: Sequence[Tensor | float], world_size: int) -> list[float]:
        """Sum gradients and scalars over all ranks, and return the scalars."""
        if len(scalars) > TAIL:
            raise ValueError(f"an objective may report {TAIL - 7} extras, not {len(scalars) - 7}")
        self.tail[: len(scalars)] = torch.stack([torch.as_tensor(s, dtype=torch.float32).cpu() for s in scalars])
        if world_size > 1:
            dist.all_reduce(self.buffer)
        return self.tail[: len(scalars)].tolist()

    def scale(self, factor: float, clip: float) -> float:
        """Multiply by `factor`, then clip to the global norm `clip`; returns the norm before clipping."""
        norm = float(torch.linalg.vector_norm(self.flat)) * factor
        self.flat.mul_(factor * (clip / norm if clip and norm > clip else 1.0))
        return norm

    def release(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
