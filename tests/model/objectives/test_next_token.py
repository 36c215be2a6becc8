"""The chunked cross-entropy against the dense one."""

import pytest
import torch
import torch.nn.functional as F

from model.objectives import next_token as module
from model.objectives.next_token import IGNORE, cross_entropy


def dense(hidden, weight, targets, softcap, z_loss, weights):
    return dense_of(hidden @ weight.t(), targets, softcap, z_loss, weights)


def dense_of(logits, targets, softcap, z_loss, weights):
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    losses = losses + z_loss * logits.logsumexp(-1).square() * (targets != IGNORE)
    return (losses if weights is None else losses * weights).sum()


@pytest.fixture(params=[7, 1000], ids=["chunks of 7", "one chunk"], autouse=True)
def chunk(request, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ROWS", request.param)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("ignored", ["none", "some", "all"])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradients_equal_the_dense_ones(softcap, z_loss, ignored, weighted):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 16, generator=generator, requires_grad=True)
    weight = torch.randn(51, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 51, (40,), generator=generator)
    if ignored != "none":
        targets[:: 3 if ignored == "some" else 1] = IGNORE
    weights = torch.rand(40, generator=generator) * 9 if weighted else None
    loss, count = cross_entropy(hidden, weight, targets, softcap, z_loss, weights)
    expected = dense(hidden, weight, targets, softcap, z_loss, weights)
    assert int(count) == int((targets != IGNORE).sum())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    mine = torch.autograd.grad(3 * loss, (hidden, weight))
    theirs = torch.autograd.grad(3 * expected, (hidden, weight))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_no_tensor_of_all_logits_is_made():
    seen = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            seen.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    hidden = torch.randn(4000, 8, requires_grad=True)
    with Spy():
        loss, _ = cross_entropy(hidden, torch.randn(51, 8), torch.zeros(4000, dtype=torch.long))
        loss.backward()
    assert max(seen) <= max(module.CHUNK_ROWS * 51, hidden.numel())


def test_without_gradients_none_are_made():
    with torch.no_grad():
        loss, _ = cross_entropy(torch.randn(5, 8), torch.randn(51, 8), torch.arange(5))
    assert not loss.requires_grad


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_in_bf16_the_loss_is_exact_but_for_the_logits_rounding(monkeypatch, softcap, weighted):
    """Softmax in fp32 over parts of a chunk, whose logits and gradients are bf16; the weight's add up in fp32."""
    monkeypatch.setattr(module, "WIDE_ELEMENTS", 51 * 3)
    monkeypatch.setattr(module, "HALF_TIMES", 1)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(51, 16, generator=generator).bfloat16().float().requires_grad_()
    targets = torch.randint(0, 51, (200,), generator=generator)
    targets[::3] = IGNORE
    weights = torch.rand(200, generator=generator) * 9 if weighted else None
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = cross_entropy(hidden, weight, targets, softcap, 0.1, weights)
    exact = hidden.detach().float().requires_grad_(), weight.detach().clone().requires_grad_()
    rounded = (hidden @ weight.bfloat16().t()).float().detach()
    logits = exact[0] @ exact[1].t()
    expected = dense_of(logits + (rounded - logits).detach(), targets, softcap, 0.1, weights)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    mine, again = (torch.autograd.grad(3 * loss, (hidden, weight), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(mine, again, strict=True))
    theirs = torch.autograd.grad(3 * expected, exact)
    assert [g.dtype for g in mine] == [torch.bfloat16, torch.float32]
    for a, b in zip(mine, theirs, strict=True):
        assert float((a - b).norm() / b.norm()) < 2**-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_logits_bytes_are_those_of_its_buffers(dtype, softcap):
    seen, slopes = [], [0]

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.empty.memory_format:
                seen.append(out.numel() * out.itemsize)
            if func is torch.ops.aten.div.Tensor:
                slopes.append(out.numel() * out.itemsize)
            return out

    hidden = torch.randn(4000, 8, dtype=dtype, requires_grad=True)
    with Spy():
        cross_entropy(hidden, torch.randn(51, 8), torch.zeros(4000, dtype=torch.long), softcap)
    expected = module.logits_bytes(4000, 51, torch.device("cpu"), dtype, softcap is not None)
    assert sum(seen) + max(slopes) == expected
