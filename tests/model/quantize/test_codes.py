"""INT8 and INT4 linears: their codes, their products, and a file of them."""

from typing import Any

import pytest
import torch
from torch import nn

from model.quantize.calibrate import codes_of
from model.quantize.grid import Bits, Codes, round_to_nearest
from model.quantize.int4 import pack, unpack
from model.quantize.replace import shell

KINDS = ("int8", "int8-dynamic", "int4")


def naive(codes: Codes) -> torch.Tensor:
    """Element by element."""
    outputs, inputs = codes.code_OI.shape
    group = inputs // codes.scale_ON.shape[1]
    value = torch.empty(outputs, inputs)
    for o in range(outputs):
        for i in range(inputs):
            zero = 0.0 if codes.zero_ON is None else float(codes.zero_ON[o, i // group])
            value[o, i] = float(codes.code_OI[o, i]) * float(codes.scale_ON[o, i // group]) + zero
    return value


def quantized(kind: str, inputs: int = 64, outputs: int = 48) -> tuple[nn.Linear, Any, Codes]:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs)
    codes = codes_of(linear.weight.detach(), kind, 32, None)
    module = shell(linear, kind, 32)
    module.fill(codes)
    with torch.no_grad():
        module.bias.copy_(linear.bias)
    return linear, module, codes


@pytest.mark.parametrize("rows", [1, 5, 60])
@pytest.mark.parametrize("kind", KINDS)
def test_the_product_is_that_with_the_dequantized_matrix(kind: str, rows: int) -> None:
    linear, module, codes = quantized(kind)
    x = torch.randn(rows, 3, 64)
    wanted = x @ naive(codes).T + linear.bias
    found = module(x)
    assert found.dtype == x.dtype and found.shape == wanted.shape
    # Activations are rounded: to 8 bits of a row's largest, or to bfloat16, whose products are rounded to it too.
    assert (found - wanted).norm() / wanted.norm() < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_activations_have_bfloat16_results(kind: str) -> None:
    _, module, _ = quantized(kind)
    x = torch.randn(2, 64).bfloat16()
    assert module(x).dtype == torch.bfloat16
    assert (module(x).float() - module(x.float())).norm() / module(x.float()).norm() < 0.01


def test_no_weight_is_further_from_its_value_than_half_a_step() -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 64)
    cases: list[tuple[Bits, int, int]] = [("int8", 64, 254), ("int4", 16, 15)]
    for bits, group, levels in cases:
        codes = round_to_nearest(weight, bits, group)
        assert torch.equal(codes.decode(), naive(codes))
        step = codes.scale_ON.repeat_interleave(64 // codes.scale_ON.shape[1], 1)
        # Scales and zeros are rounded to bfloat16, so the ends of the range lie up to 0.4% of it outside.
        assert ((codes.decode() - weight).abs() <= step * (0.5 + 0.004 * levels)).all()
        assert ((codes.decode() - weight).abs() <= step * 0.501).float().mean() > 0.9


def test_codes_lie_two_in_a_byte_and_come_back() -> None:
    codes = torch.randint(-8, 8, (5, 12), dtype=torch.int8)
    assert pack(codes).shape == (5, 6) and torch.equal(unpack(pack(codes)), codes)


def test_a_dynamic_row_s_result_does_not_depend_on_the_other_rows() -> None:
    _, module, _ = quantized("int8-dynamic")
    x = torch.randn(4, 64)
    with_large = torch.cat([x, 1000 * torch.randn(1, 64)])
    assert torch.equal(module(with_large)[:4], module(x))


def test_a_row_of_zeros_and_a_matrix_of_zeros_are_no_nan() -> None:
    for kind in KINDS:
        _, module, _ = quantized(kind)
        module.fill(codes_of(torch.zeros(48, 64), kind, 32, None))
        assert torch.equal(module(torch.zeros(1, 64)), module.bias[None].to(torch.float32))


def test_what_replaces_the_codes_replaces_what_was_packed_of_them() -> None:
    _, module, _ = quantized("int4")
    x = torch.randn(1, 64)
    module(x)
    module.load_state_dict({**module.state_dict(), "scale_ON": module.scale_ON * 2, "zero_ON": module.zero_ON * 2})
    doubled = module(x) - module.bias
    _, fresh, _ = quantized("int4")
    torch.testing.assert_close(doubled, 2 * (fresh(x) - fresh.bias), rtol=0.02, atol=0.02)
