"""Attention by blocks of queries against a dense softmax, and in place of SDPA in whole models."""

import pytest
import torch
from small_models import SHAPES, TWO_WAY, lively, random_tokens
from test_decoder import positions_of

from model.kernels import blocked
from model.layers.attention import attend
from model.objectives.next_token import Batch, next_token
from model.segments import Segments

ATTENDING = ["llama", "gqa-qk-norm", "mqa-geglu-softcap", "part-rope-yarn-qkv-bias", "mamba2-hybrid"]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocked, "C", 5)


@pytest.fixture
def always(monkeypatch, small_blocks):
    """In fp32 and on any machine, so that it can be held against SDPA to the last digits."""
    monkeypatch.setattr(blocked, "usable", lambda q, k: q.shape[2] > 1)


def dense(q, k, v, causal, scale):
    """softmax of all scores."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = scale * q @ k.transpose(2, 3)
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[2:]).triu(1).bool(), -torch.inf)
    return scores.softmax(-1) @ v


def heads(B, H, T, D, dtype=torch.float32, seed=0):
    x = torch.randn(B, T, H, D, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.transpose(1, 2).requires_grad_()


@pytest.mark.parametrize(("H", "K"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize(("T", "S", "causal"), [(3, 3, True), (10, 10, True), (17, 17, True), (12, 7, False)])
def test_outputs_and_gradients_equal_a_dense_softmax(small_blocks, H, K, T, S, causal):
    tensors = heads(2, H, T, 8), heads(2, K, S, 8, seed=1), heads(2, K, S, 8, seed=2)
    given = blocked.attend_in_blocks(*tensors, causal, 0.3)
    expected = dense(*tensors, causal, 0.3)
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)
    assert given.transpose(1, 2).is_contiguous()
    upstream = heads(2, H, T, 8, seed=3).detach()
    for a, b in zip(*(torch.autograd.grad(y, tensors, upstream) for y in (given, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def errors(monkeypatch, scale: float) -> list[float]:
    """Relative ones in bf16 of the output and the gradients, of 300 queries and keys of length about 4."""
    monkeypatch.setattr(blocked, "has_bf16", lambda device: (True, ""))
    tensors = heads(2, 4, 300, 16, torch.bfloat16), *(heads(2, 2, 300, 16, torch.bfloat16, s) for s in (1, 2))
    exact = [x.detach().double().requires_grad_() for x in tensors]
    given, expected = attend(*tensors, causal=True, scale=scale), dense(*exact, True, scale)
    upstream = heads(2, 4, 300, 16, torch.bfloat16, 3).detach()
    given = (given, *torch.autograd.grad(given, tensors, upstream))
    expected = (expected, *torch.autograd.grad(expected, exact, upstream.double()))
    assert all(x.dtype == torch.bfloat16 for x in given)
    return [float((a - b).detach().norm() / b.detach().norm()) for a, b in zip(given, expected, strict=True)]


@pytest.mark.parametrize("block", [5, blocked.C])
def test_bf16_is_as_near_to_the_exact_result_as_its_digits_allow(monkeypatch, block):
    """Also where a key's gradient is the sum of 60 blocks."""
    monkeypatch.setattr(blocked, "C", block)
    calls = counted(monkeypatch)
    assert max(errors(monkeypatch, 0.25)) < 2**-7 and calls


@pytest.mark.parametrize(("scale", "takes_blocks"), [(1.0, True), (8.0, False)])
def test_large_scores_which_bf16_would_round_are_left_to_sdpa(monkeypatch, scale, takes_blocks):
    calls = counted(monkeypatch)
    assert max(errors(monkeypatch, scale)) < 2**-6 and bool(calls) == takes_blocks
    monkeypatch.setattr(blocked, "LARGEST", float("inf"))
    assert takes_blocks or max(errors(monkeypatch, scale)) > 2**-6


def test_it_is_taken_in_bf16_on_a_cpu_that_has_it_where_there_are_enough_queries(monkeypatch):
    monkeypatch.setattr(blocked, "has_bf16", lambda device: (True, ""))
    q, k = (torch.empty(2, heads, 300, 16, dtype=torch.bfloat16) for heads in (4, 2))
    assert blocked.usable(q, k)
    assert not blocked.usable(q.float(), k.float()) and not blocked.usable(q.to("meta"), k.to("meta"))
    assert not blocked.usable(q[:1], k[:1]) and not blocked.usable(q.expand(2, 4, 300, 16)[:, :, :1], k)
    assert not blocked.usable(q, torch.empty(2, 2, blocked.LONGEST + 1, 16, dtype=torch.bfloat16))
    monkeypatch.setattr(blocked, "has_bf16", lambda device: (False, ""))
    assert not blocked.usable(q, k)


def test_a_later_token_changes_no_earlier_one_by_a_bit(small_blocks):
    tensors = heads(2, 4, 17, 8), heads(2, 2, 17, 8, seed=1), heads(2, 2, 17, 8, seed=2)
    before = blocked.attend_in_blocks(*tensors, True, 1.0)
    after = blocked.attend_in_blocks(*(x.detach() + (torch.arange(17) > 11)[:, None] for x in tensors), True, 1.0)
    assert torch.equal(before[:, :, :12], after[:, :, :12]) and not torch.equal(before[:, :, 12], after[:, :, 12])


@pytest.mark.parametrize(
    "shape", [*(SHAPES[name] for name in ATTENDING), *TWO_WAY.values()], ids=[*ATTENDING, *TWO_WAY]
)
def test_a_model_s_outputs_and_gradients_equal_those_by_sdpa(monkeypatch, shape):
    """Over packed documents of which some are padded."""
    model, tokens = lively(shape), random_tokens(2, 32)
    segments = Segments.from_positions(positions_of([[11, 1, 20], [13, 19]]))
    weights = torch.randn(2, 32, shape.d_model)

    def run():
        hidden, _ = model(tokens, segments=segments)
        return hidden, *torch.autograd.grad((hidden * weights).sum(), list(model.parameters()), allow_unused=True)

    expected = run()
    monkeypatch.setattr(blocked, "C", 5)
    monkeypatch.setattr(blocked, "usable", lambda q, k: q.shape[2] > 1)
    calls = counted(monkeypatch)
    given = run()
    assert calls
    for a, b in zip(given, expected, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ATTENDING)
def test_prefill_and_single_tokens_equal_the_whole(always, name):
    model, tokens = lively(SHAPES[name]), random_tokens(2, 24)
    whole, _ = model(tokens)
    first, state = model(tokens[:, :17], state=model.new_state(2, 24))
    rest = [first]
    for t in range(17, 24):
        hidden, state = model(tokens[:, t : t + 1], state=state)
        rest.append(hidden)
    torch.testing.assert_close(torch.cat(rest, 1), whole, atol=2e-5, rtol=1e-4)


def counted(monkeypatch) -> list[int]:
    """How often a block's scores are made."""
    calls, made = [], blocked._probabilities
    monkeypatch.setattr(blocked, "_probabilities", lambda *args: calls.append(1) or made(*args))
    return calls


def test_selective_checkpointing_keeps_its_result_and_full_makes_it_again(monkeypatch, always):
    model = lively(SHAPES["gqa-qk-norm"])
    batch = Batch(random_tokens(2, 16), random_tokens(2, 16, seed=1), torch.arange(16).expand(2, 16))
    calls, made, gradients = counted(monkeypatch), [], []
    for kind in ("none", "selective", "full"):
        model.checkpointing = kind
        model.zero_grad()
        calls.clear()
        next_token(model, batch)[0].backward()
        made.append(len(calls))
        gradients.append([p.grad.clone() for p in model.parameters()])
    blocks = 2 * 4  # layers, blocks of 5 of 16 queries
    assert made == [2 * blocks, 2 * blocks, 3 * blocks]
    assert all(torch.equal(a, b) for other in gradients[1:] for a, b in zip(gradients[0], other, strict=True))
