"""The linear recurrence against a loop over tokens."""

import pytest
import torch
from mixing import random

from model.kernels.scan import linear_scan


def naive(a, b, starts=None):
    h, out = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        if starts is not None:
            h = torch.where(starts[:, t].view(-1, *(1,) * (h.ndim - 1)), torch.zeros_like(h), h)
        h = a[:, t] * h + b[:, t]
        out.append(h)
    return torch.stack(out, 1)


@pytest.mark.parametrize(
    ("length", "cut", "shared"),
    [(length, cut, shared) for length in (1, 64, 65, 100) for cut in (False, True) for shared in (False, True)]
    + [(2100, True, True)],  # chunks of chunks of chunks
)
def test_values_and_gradients_equal_a_loop(length, cut, shared):
    a = torch.sigmoid(random(2, length, 1 if shared else 3, 1)).requires_grad_()
    b = random(2, length, 3, 2, seed=1).requires_grad_()
    starts = torch.rand(2, length, generator=torch.Generator().manual_seed(2)) < 0.02 if cut else None
    weights = random(2, length, 3, 2, seed=3)
    results = []
    for scan in (linear_scan, naive):
        h = scan(a, b, starts)
        results.append((h.detach(), *torch.autograd.grad((h * weights).sum(), (a, b))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_decays_that_underflow_and_decays_of_one_stay_finite():
    a = torch.zeros(1, 300, 2)
    a[..., 1] = 1
    h = linear_scan(a, torch.ones(1, 300, 2))
    assert torch.equal(h[0, :, 0], torch.ones(300)) and torch.equal(h[0, :, 1], torch.arange(1.0, 301))


def test_nothing_passes_a_start_not_even_infinity():
    a, b = torch.full((1, 200, 4), 0.9), random(1, 200, 4)
    starts = torch.zeros(1, 200, dtype=torch.bool)
    starts[0, 90] = True
    before = linear_scan(a, b, starts)
    b[0, :90] = float("inf")
    assert torch.equal(linear_scan(a, b, starts)[0, 90:], before[0, 90:])
