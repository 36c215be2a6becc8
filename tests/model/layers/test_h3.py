"""H3 against its convolutions written out, O(T^2)."""

import pytest
import torch
import torch.nn.functional as F
from mixing import (
    PACKINGS,
    check_a_document_is_cut_off_from_another,
    check_generation,
    check_packed_rows,
    lively_mixer,
    products_per_token,
)

from model.config import ModelConfig
from model.layers.h3 import H3
from model.part_configs import H3Config

ONE = ModelConfig(97, 32, 1, 4, h3=H3Config(d_state=8, chunk=8))
HEADS = ModelConfig(97, 32, 1, 4, bias=True, h3=H3Config(d_state=4, head_dim=4, shift=3, chunk=5))


def naive(mixer, x_TD):
    """One document: u of every earlier token times the kernel at its distance."""
    T, P = x_TD.shape[0], mixer.head_dim
    q, k, v = mixer.q(x_TD), mixer.k(x_TD), mixer.v(x_TD)
    taps = mixer.shift.weight
    k = F.conv1d(F.pad(k.t()[None], (taps.shape[2] - 1, 0)), taps, groups=taps.shape[0])[0].t()
    q, k, v = (part.view(T, -1, P) for part in (q, k, v))
    u = k[..., :, None] * v[..., None, :]
    ssm = mixer.diagonal
    A, dt = -ssm.A_log.exp(), ssm.log_dt.exp()[:, None]
    B = (torch.exp(dt * A) - 1) / A  # zero-order hold
    out = []
    for t in range(T):
        distance = t - torch.arange(t + 1)
        kernel = (ssm.C * B * torch.exp(distance[:, None, None] * dt * A)).sum(-1)  # (t + 1, H)
        y = (kernel[..., None, None] * u[: t + 1]).sum(0) + ssm.D[:, None, None] * u[t]
        out.append((q[t][..., None] * y).sum(-2).flatten())
    return mixer.out(torch.stack(out))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("config", [ONE, HEADS], ids=["one channel", "heads of four"])
def test_packed_rows_equal_the_direct_convolution_of_each_document(config, packing):
    check_packed_rows(lively_mixer("h3", config), naive, packing)


@pytest.mark.parametrize("config", [ONE, HEADS], ids=["one channel", "heads of four"])
def test_generation_equals_the_direct_convolution(config):
    check_generation(lively_mixer("h3", config), naive)


def test_no_state_crosses_a_document_s_start():
    check_a_document_is_cut_off_from_another(lively_mixer("h3", ONE))


def test_heads_that_don_t_fit_are_refused():
    with pytest.raises(ValueError, match=r"h3.head_dim = 5 does not divide d_model = 32"):
        H3(ModelConfig(97, 32, 1, 4, h3=H3Config(head_dim=5)), 0)


@pytest.mark.parametrize("config", [ONE, HEADS], ids=["one channel", "heads of four"])
def test_flops_are_the_products_it_does(config):
    """L x L products are counted at the pairs that see each other, (L + 1) / 2 of L; the kernel, whatever T, is not."""
    mixer = lively_mixer("h3", config)
    (heads, states), chunk = mixer.diagonal.C.shape, mixer.diagonal.chunk
    entries, T = heads * mixer.head_dim**2, 4 * chunk
    unseen = 2 * entries * (chunk - (chunk + 1) / 2)
    kernel = 2 * heads * states * chunk / T
    counted = mixer.flops_per_token(torch.tensor([1e9])) - mixer.shift.flops_per_token - 3 * entries
    assert products_per_token(mixer, T) == pytest.approx(counted + unseen + kernel)
