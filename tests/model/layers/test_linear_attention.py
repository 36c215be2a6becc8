"""Gated linear attention against the recurrence, token by token: its chunks in double precision, then the mixer."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from mixing import (
    PACKINGS,
    check_a_document_is_cut_off_from_another,
    check_generation,
    check_packed_rows,
    lively_mixer,
)
from small_models import SMALL

from model.config import ModelConfig
from model.layers.linear_attention import FLOOR, chunked
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


MIXERS = {
    "small": ModelConfig(97, 32, 1, 4, linear_attention=LinearAttentionConfig(chunk=8)),
    "biases": ModelConfig(97, 32, 1, 2, d_head=12, bias=True, linear_attention=LinearAttentionConfig(chunk=5)),
}
by_config = pytest.mark.parametrize("config", MIXERS.values(), ids=MIXERS.keys())


def naive_mixer(mixer, x_TD):
    """One document, head by head and state by state, as the paper's section 4.4 writes the layer."""
    H, K, V = mixer.n_heads, mixer.k_dim, mixer.v_dim
    W, b = mixer.qkvr.weight, mixer.qkvr.bias
    edges = [0, H * K, 2 * H * K, 2 * H * K + H * V, 2 * H * K + 2 * H * V]
    q, k, v, r = (
        x_TD @ W[start:end].t() + (0 if b is None else b[start:end]) for start, end in itertools.pairwise(edges)
    )
    alpha = torch.sigmoid(x_TD @ mixer.gate_down.weight.t() @ mixer.gate_up.weight.t() + mixer.gate_up.bias) ** (1 / 16)
    rows = []
    for h in range(H):
        keys, values, S, out = slice(h * K, (h + 1) * K), slice(h * V, (h + 1) * V), torch.zeros(K, V), []
        for t in range(x_TD.shape[0]):
            S = alpha[t, keys, None] * S + torch.outer(k[t, keys], v[t, values])
            o = q[t, keys] @ S / K**0.5
            out.append(o / torch.sqrt(o.square().mean() + 1e-5) * mixer.norm.weight * F.silu(r[t, values]))
        rows.append(torch.stack(out))
    return mixer.out(torch.cat(rows, 1))


@pytest.mark.parametrize("packing", PACKINGS)
@by_config
def test_packed_rows_equal_the_recurrence_of_each_document(config, packing):
    check_packed_rows(lively_mixer("linear_attention", config), naive_mixer, packing)


@by_config
def test_generation_equals_the_recurrence(config):
    check_generation(lively_mixer("linear_attention", config), naive_mixer)


def test_no_state_crosses_a_document_s_start():
    check_a_document_is_cut_off_from_another(lively_mixer("linear_attention", MIXERS["small"]))


def test_a_gate_beyond_the_floor_stays_finite():
    """The gate's logits may be anything: sigmoid(-1e4) is 0 in every precision."""
    from model.layers.linear_attention import LinearAttention
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
