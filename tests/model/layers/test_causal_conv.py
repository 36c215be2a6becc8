"""The short convolution: every tap, over packed rows and after a state."""

import pytest
import torch
import torch.nn.functional as F
from mixing import PACKINGS, check_a_document_is_cut_off_from_another, check_generation, check_packed_rows, random

from model.layers.causal_conv import CausalConv
from model.segments import Segments


class Mixer(torch.nn.Module):
    """The convolution in the shape of a mixer."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.conv = CausalConv(32, width, bias)
        self.conv.init_weights(torch.Generator().manual_seed(0))
        if self.conv.bias is not None:
            torch.nn.init.normal_(self.conv.bias, generator=torch.Generator().manual_seed(1))

    def forward(self, x, segments, state=None):
        return self.conv(x, segments, state), state

    def new_state(self, batch, max_len, device, dtype):
        return self.conv.new_state(batch, device, dtype)


def naive(mixer, x_TD):
    """torch's own convolution of one document."""
    weight = mixer.conv.weight
    padded = F.pad(x_TD.t()[None], (weight.shape[2] - 1, 0))
    return F.conv1d(padded, weight, mixer.conv.bias, groups=weight.shape[0])[0].t()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("width", "bias"), [(4, True), (3, False), (1, True)])
def test_packed_rows_equal_torch_s_convolution_of_each_document(width, bias, packing):
    check_packed_rows(Mixer(width, bias), naive, packing)


@pytest.mark.parametrize("block", [4, 5, 31])
def test_tokens_gone_through_in_blocks(block, monkeypatch):
    monkeypatch.setattr("model.layers.causal_conv.BLOCK", block * 3 * 32)
    check_packed_rows(Mixer(4, True), naive, PACKINGS[0])


@pytest.mark.parametrize("width", [4, 1])
def test_generation_equals_the_whole_convolution(width):
    check_generation(Mixer(width, True), naive)


def test_no_tap_crosses_a_document_s_start():
    check_a_document_is_cut_off_from_another(Mixer(4, True))


def test_more_taps_than_tokens():
    mixer = Mixer(7, False)
    x = random(1, 3, 32)
    torch.testing.assert_close(mixer(x, Segments.unbroken(1, 3))[0][0], naive(mixer, x[0]))


def test_bf16_inputs_are_summed_in_float32():
    mixer = Mixer(4, True)
    x = random(1, 32, 32).bfloat16()
    y, _ = mixer(x, Segments.unbroken(1, 32))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y[0].float(), naive(mixer, x[0].float()), rtol=2**-8 * 1.01, atol=1e-6)
