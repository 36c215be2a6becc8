"""Mamba-2 against the recurrence, token by token, and against `transformers`."""

import pytest
import torch
import torch.nn.functional as F
from mixing import (
    PACKINGS,
    check_a_document_is_cut_off_from_another,
    check_equals_theirs,
    check_generation,
    check_packed_rows,
    lively_mixer,
    products_per_token,
    random,
)
from transformers import Mamba2Config as TheirConfig
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from model.config import ModelConfig
from model.layers.mamba2 import Mamba2
from model.part_configs import Mamba2Config
from model.segments import Segments

SMALL = ModelConfig(97, 32, 1, 4, mamba2=Mamba2Config(d_state=8, head_dim=16, chunk=8))
GROUPS = ModelConfig(97, 32, 1, 4, mamba2=Mamba2Config(d_state=8, head_dim=8, n_groups=4, conv_width=3, chunk=5))


def naive(mixer, x_TD):
    """One document, state by state."""
    H, P, N, G = mixer.n_heads, mixer.head_dim, mixer.d_state, mixer.n_groups
    z, xBC, dt = F.linear(x_TD, mixer.in_proj.weight, mixer.in_proj.bias).split((H * P, H * P + 2 * G * N, H), -1)
    weight, bias = mixer.conv1d.weight, mixer.conv1d.bias
    padded = F.pad(xBC.t()[None], (weight.shape[2] - 1, 0))
    xBC = F.silu(F.conv1d(padded, weight, bias, groups=weight.shape[0])[0].t())
    dt = F.softplus(dt + mixer.dt_bias)
    h, out = torch.zeros(H, P, N), []
    for t in range(x_TD.shape[0]):
        x = xBC[t, : H * P].view(H, P)
        B, C = (part.view(G, N).repeat_interleave(H // G, 0) for part in xBC[t, H * P :].chunk(2))
        decay = torch.exp(dt[t] * -mixer.A_log.exp())
        h = decay[:, None, None] * h + dt[t, :, None, None] * x[:, :, None] * B[:, None]
        out.append(((h * C[:, None]).sum(-1) + mixer.D[:, None] * x).flatten())
    gated = torch.stack(out) * F.silu(z)
    groups = gated.unflatten(-1, (G, -1))
    normed = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + mixer.norm.eps)
    return mixer.out_proj(normed.flatten(-2) * mixer.norm.weight)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("config", [SMALL, GROUPS], ids=["one group", "four groups"])
def test_packed_rows_equal_the_recurrence_of_each_document(config, packing):
    check_packed_rows(lively_mixer("mamba2", config), naive, packing)


@pytest.mark.parametrize("chunks", [1, 2])
def test_chunks_gone_through_in_blocks(chunks, monkeypatch):
    monkeypatch.setattr("model.kernels.ssd.BLOCK", chunks * 3 * 8)
    check_packed_rows(lively_mixer("mamba2", SMALL), naive, PACKINGS[2])
    check_generation(lively_mixer("mamba2", SMALL), naive)


@pytest.mark.parametrize("config", [SMALL, GROUPS], ids=["one group", "four groups"])
def test_generation_equals_the_recurrence(config):
    check_generation(lively_mixer("mamba2", config), naive)


def test_no_state_or_score_crosses_a_document_s_start():
    check_a_document_is_cut_off_from_another(lively_mixer("mamba2", SMALL))


@pytest.mark.parametrize(("groups", "bias"), [(1, False), (2, True)])
def test_it_equals_transformers_by_renaming(groups, bias):
    theirs = Mamba2Mixer(
        TheirConfig(
            hidden_size=32,
            num_heads=8,
            head_dim=8,
            state_size=16,
            expand=2,
            n_groups=groups,
            chunk_size=8,
            use_bias=bias,
            layer_norm_epsilon=1e-5,
            num_hidden_layers=1,
        ),
        layer_idx=0,
    )
    part = Mamba2Config(d_state=16, head_dim=8, n_groups=groups, chunk=16)
    ours = Mamba2(ModelConfig(97, 32, 1, 4, bias=bias, mamba2=part), 0)
    check_equals_theirs(ours, theirs, theirs)


def test_long_memories_and_sudden_forgetting_stay_finite_with_their_gradients():
    mixer = lively_mixer("mamba2", SMALL)
    with torch.no_grad():
        mixer.dt_bias.copy_(torch.tensor([-20.0, 0.0, 20.0, 200.0]))
    x = (random(1, 200, 32) * 10).requires_grad_()
    y, _ = mixer(x, Segments.unbroken(1, 200))
    y.square().sum().backward()
    assert y.isfinite().all() and all(t.grad.isfinite().all() for t in (x, *mixer.parameters()))


def test_initial_decays_are_the_paper_s():
    mixer = Mamba2(ModelConfig(97, 64, 1, 4, mamba2=Mamba2Config(head_dim=1)), 0)
    mixer.init_weights(torch.Generator().manual_seed(0), 0.02, 0.02)
    dt, A = F.softplus(mixer.dt_bias.detach()), mixer.A_log.detach().exp()
    assert 0.001 <= dt.min() < 0.0015 and 0.07 < dt.max() <= 0.1001 and 0.008 < dt.median() < 0.0125
    assert 1 <= A.min() < 2 and 15 < A.max() <= 16.001 and 7 < A.mean() < 10


@pytest.mark.parametrize(
    ("part", "message"),
    [({"head_dim": 24}, "not a multiple of mamba2.head_dim"), ({"head_dim": 16, "n_groups": 3}, "does not divide")],
)
def test_heads_that_don_t_fit_are_refused(part, message):
    with pytest.raises(ValueError, match=message):
        Mamba2(ModelConfig(97, 32, 1, 4, mamba2=Mamba2Config(**part)), 0)


@pytest.mark.parametrize("config", [SMALL, GROUPS], ids=["one group", "four groups"])
def test_flops_are_the_products_it_does(config):
    """L x L products are counted at the pairs that see each other, (L + 1) / 2 of L."""
    mixer = lively_mixer("mamba2", config)
    unseen = 2 * (mixer.chunk - (mixer.chunk + 1) / 2) * (mixer.sizes[0] + mixer.sizes[2])
    counted = mixer.flops_per_token(torch.tensor([1e9])) - mixer.conv1d.flops_per_token
    assert products_per_token(mixer, 4 * mixer.chunk) == counted + unseen
