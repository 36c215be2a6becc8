"""Gated linear attention by chunks against the recurrence, token by token, in double precision."""

import pytest
import torch
from small_models import SMALL

from model.config import ModelConfig
from model.linear_attention import FLOOR, chunked
from model.part_configs import LinearAttentionConfig


def naive(q, k, v, g, S):
    outputs = []
    for t in range(q.shape[2]):
        S = g[:, :, t, :, None].exp() * S + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append((q[:, :, t, :, None] * S).sum(-2))
    return torch.stack(outputs, 2), S


def inputs(T: int, gates: str, K: int = 4, V: int = 6):
    generator = torch.Generator().manual_seed(T)
    q, k = (torch.randn(2, 3, T, K, generator=generator) for _ in range(2))
    v, S = torch.randn(2, 3, T, V, generator=generator), torch.randn(2, 3, K, V, generator=generator)
    z = torch.randn(2, 3, T, K, generator=generator)
    g = {"usual": torch.nn.functional.logsigmoid(z) / 16, "wild": FLOOR * torch.sigmoid(4 * z)}
    g |= {"all at the floor": torch.full_like(z, FLOOR), "open": torch.zeros_like(z)}
    return q, k, v, g[gates], S


@pytest.mark.parametrize("gates", ["usual", "wild", "all at the floor", "open"])
@pytest.mark.parametrize(("T", "chunk"), [(1, 32), (5, 32), (32, 32), (33, 32), (300, 32), (37, 8), (9, 1)])
@pytest.mark.parametrize("from_state", [False, True])
def test_chunks_equal_the_recurrence(T, chunk, gates, from_state):
    q, k, v, g, S = inputs(T, gates)
    S = S if from_state else torch.zeros_like(S)
    fast = [x.requires_grad_() for x in (q, k, v, g, S)]
    slow = [x.detach().double().requires_grad_() for x in fast]
    out, after = chunked(*fast[:4], fast[4] if from_state else None, chunk)
    expected, expected_after = naive(*slow)
    generator = torch.Generator().manual_seed(0)
    weights, state_weights = (torch.randn(x.shape, generator=generator) for x in (out, after))
    ((out * weights).sum() + (after * state_weights).sum()).backward()
    ((expected * weights).sum() + (expected_after * state_weights).sum()).backward()
    pairs = [(out, expected), (after, expected_after)]
    pairs += [(a.grad, b.grad) for a, b in zip(fast, slow, strict=True) if from_state or a is not fast[4]]
    for given, wanted in pairs:
        assert given.dtype == torch.float32
        torch.testing.assert_close(given.double(), wanted, atol=2e-5 * max(1.0, wanted.abs().max().item()), rtol=1e-4)


def test_a_gate_beyond_the_floor_stays_finite():
    """The gate's logits may be anything: sigmoid(-1e4) is 0 in every precision."""
    from model.linear_attention import LinearAttention
    from model.segments import Segments

    config = ModelConfig(**SMALL, pattern=("linear_attention",))
    mixer = LinearAttention(config, 0)
    mixer.init_weights(torch.Generator().manual_seed(0), 0.2, 0.2)
    with torch.no_grad():
        mixer.gate_up.bias.fill_(-1e4)
    x = torch.randn(1, 200, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y, _ = mixer(x, Segments.unbroken(1, 200))
    y.square().sum().backward()
    assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


def test_a_longer_chunk_than_fp32_can_hold_is_refused():
    with pytest.raises(ValueError, match="chunk = 128 is too large"):
        LinearAttentionConfig(chunk=128)
