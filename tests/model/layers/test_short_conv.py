"""The gated short convolution against a loop over tokens, and against `transformers`."""

import pytest
import torch
from mixing import (
    PACKINGS,
    check_a_document_is_cut_off_from_another,
    check_equals_theirs,
    check_generation,
    check_packed_rows,
    lively_mixer,
)
from transformers import Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

from model.config import ModelConfig
from model.layers.short_conv import ShortConv
from model.part_configs import ShortConvConfig

PLAIN = ModelConfig(97, 32, 1, 4)
BIASED = ModelConfig(97, 32, 1, 4, short_conv=ShortConvConfig(conv_width=4, bias=True))


def naive(mixer, x_TD):
    B, C, x = mixer.in_proj(x_TD).chunk(3, -1)
    gated, taps = B * x, mixer.conv.weight[:, 0]
    out = []
    for t in range(x_TD.shape[0]):
        y = sum(taps[:, -1 - j] * gated[t - j] for j in range(min(t + 1, taps.shape[1])))
        out.append(C[t] * (y if mixer.conv.bias is None else y + mixer.conv.bias))
    return mixer.out_proj(torch.stack(out))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("config", [PLAIN, BIASED], ids=["plain", "biased"])
def test_packed_rows_equal_a_loop_over_each_document(config, packing):
    check_packed_rows(lively_mixer("short_conv", config), naive, packing)


@pytest.mark.parametrize("config", [PLAIN, BIASED], ids=["plain", "biased"])
def test_generation_equals_a_loop(config):
    check_generation(lively_mixer("short_conv", config), naive)


def test_no_tap_crosses_a_document_s_start():
    check_a_document_is_cut_off_from_another(lively_mixer("short_conv", PLAIN))


@pytest.mark.parametrize("bias", [False, True])
def test_it_equals_transformers_by_renaming(bias):
    theirs = Lfm2ShortConv(Lfm2Config(hidden_size=32, num_hidden_layers=2, conv_L_cache=3, conv_bias=bias), 0)
    ours = ShortConv(ModelConfig(97, 32, 1, 4, short_conv=ShortConvConfig(bias=bias)), 0)
    check_equals_theirs(ours, theirs, theirs)
