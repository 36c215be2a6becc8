"""Griffin's recurrent block against its recurrence, token by token, and against `transformers`."""

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
from transformers import RecurrentGemmaConfig
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock

from model.config import ModelConfig
from model.layers.rg_lru import RecurrentBlock
from model.part_configs import RgLruConfig
from model.segments import Segments

SMALL = ModelConfig(97, 32, 1, 4)
WIDE = ModelConfig(97, 32, 1, 4, bias=True, rg_lru=RgLruConfig(width=48, n_blocks=3, conv_width=3))


def naive(mixer, x_TD):
    """One document, state by state."""
    weight, bias = mixer.conv_1d.weight, mixer.conv_1d.bias
    padded = F.pad(mixer.linear_x(x_TD).t()[None], (weight.shape[2] - 1, 0))
    x_TC = F.conv1d(padded, weight, bias, groups=weight.shape[0])[0].t()
    unit = mixer.rg_lru
    W_i, W_a = torch.block_diag(*unit.input_gate_weight), torch.block_diag(*unit.recurrent_gate_weight)
    h, out = torch.zeros(x_TC.shape[1]), []
    for t, x in enumerate(x_TC):
        i = torch.sigmoid(x @ W_i + unit.input_gate_bias.flatten())
        r = torch.sigmoid(x @ W_a + unit.recurrent_gate_bias.flatten())
        a = torch.sigmoid(-unit.recurrent_param) ** (8 * r)
        h = i * x if t == 0 else a * h + torch.sqrt(1 - a**2) * i * x
        out.append(h)
    return mixer.linear_out(F.gelu(mixer.linear_y(x_TD), approximate="tanh") * torch.stack(out))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["small", "wide"])
def test_packed_rows_equal_the_recurrence_of_each_document(config, packing):
    check_packed_rows(lively_mixer("rg_lru", config), naive, packing)


@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["small", "wide"])
def test_generation_equals_the_recurrence(config):
    check_generation(lively_mixer("rg_lru", config), naive)


def test_no_state_crosses_a_document_s_start():
    check_a_document_is_cut_off_from_another(lively_mixer("rg_lru", SMALL))


def test_it_equals_transformers_by_renaming():
    theirs = RecurrentGemmaRecurrentBlock(
        RecurrentGemmaConfig(hidden_size=32, num_attention_heads=4, lru_width=48, conv1d_width=4), 0
    )
    ours = RecurrentBlock(ModelConfig(97, 32, 1, 4, bias=True, rg_lru=RgLruConfig(width=48)), 0)
    check_equals_theirs(ours, theirs, lambda x: theirs(x, torch.arange(45).expand(2, 45), None, use_cache=False)[0])


def test_gates_at_their_ends_stay_finite_with_their_gradients():
    mixer = lively_mixer("rg_lru", SMALL)
    with torch.no_grad():
        mixer.rg_lru.recurrent_gate_bias.copy_(torch.tensor([-200.0, -20.0, 20.0, 200.0])[:, None].expand(4, 8))
        mixer.rg_lru.recurrent_param.copy_(torch.linspace(-100, 100, 32))
    x = random(1, 200, 32).requires_grad_()
    y, _ = mixer(x, Segments.unbroken(1, 200))
    y.square().sum().backward()
    assert y.isfinite().all() and all(t.grad.isfinite().all() for t in (x, *mixer.parameters()))


def test_initial_decays_are_the_paper_s():
    mixer = RecurrentBlock(ModelConfig(97, 256, 1, 4), 0)
    mixer.init_weights(torch.Generator().manual_seed(0), 0.02, 0.02)
    slowest = torch.sigmoid(-mixer.rg_lru.recurrent_param.detach()) ** 8
    assert 0.9 <= slowest.min() < 0.91 and 0.99 < slowest.max() <= 0.9991


def test_blocks_that_don_t_fit_are_refused():
    with pytest.raises(ValueError, match=r"4 blocks .* don't divide its 30 channels"):
        RecurrentBlock(ModelConfig(97, 32, 1, 4, rg_lru=RgLruConfig(width=30)), 0)


@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["small", "wide"])
def test_flops_are_the_products_it_does(config):
    mixer = lively_mixer("rg_lru", config)
    elementwise = mixer.conv_1d.flops_per_token + 2 * mixer.linear_x.out_features
    assert products_per_token(mixer, 16) == mixer.flops_per_token(torch.tensor([1e9])) - elementwise
