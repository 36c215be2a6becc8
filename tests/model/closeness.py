"""Comparisons that know their condition: two ways of one computation differ by what rounding alone may do to it.

How far rounding carries depends on the function (the norm of a near-zero vector magnifies it a hundredfold) and on the
machine (AVX2, AVX-512 and AMX add up in different orders). So the bound is measured, not given: the same computation is
done again with every parameter rounded otherwise, a relative change of 2^-23, and may differ TIMES as much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

EPSILON = 2.0**-23  # of float32
TIMES = 32  # parameters are rounded once, the numbers in between at every step
LEAST = 64 * EPSILON  # of the largest number of a result


@torch.no_grad()
def _round_otherwise(parameters: Sequence[Tensor], generator: torch.Generator) -> None:
    for p in parameters:
        p.mul_(1 + EPSILON * (torch.randint(0, 3, p.shape, generator=generator) - 1))


def rounding(compute: Callable[[], Sequence[Tensor]], parameters: Iterable[Tensor], draws: int = 3) -> list[float]:
    """How far each result of `compute` moves at most when `parameters`, which it depends on, are rounded otherwise."""
    parameters = list(parameters)
    kept = [p.detach().clone() for p in parameters]
    exact = [result.detach().clone() for result in compute()]
    moved = [0.0] * len(exact)
    for draw in range(draws):
        _round_otherwise(parameters, torch.Generator().manual_seed(draw))
        for i, (result, before) in enumerate(zip(compute(), exact, strict=True)):
            moved[i] = max(moved[i], float((result.detach() - before).abs().max()) if before.numel() else 0.0)
        with torch.no_grad():
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)
    return moved


def assert_equal_up_to_rounding(given: Sequence[Tensor], expected: Sequence[Tensor], moved: Sequence[float]) -> None:
    """Each result of `given` is that of `expected`, as far as rounding, which moves them by `moved`, lets one tell."""
    for number, (a, b, by) in enumerate(zip(given, expected, moved, strict=True)):
        bound = TIMES * by + LEAST * float(b.detach().abs().max() if b.numel() else 0.0)
        torch.testing.assert_close(a, b, rtol=0, atol=bound, msg=lambda m, n=number, at=bound: f"{n} within {at}: {m}")
