"""GPTQ against a reference that takes one column after another, by the equations as they stand in the paper."""

import pytest
import torch

from model.quantize.gptq import Hessian, gptq, objective
from model.quantize.grid import Bits, Codes, grid_of, round_to_nearest


def layer(outputs: int = 24, inputs: int = 96, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and the Hessian of inputs that depend on one another."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator)
    hessian = Hessian(inputs)
    for _ in range(2):
        hessian.add(torch.randn(4, 100, inputs, generator=generator) @ mix)
    return torch.randn(outputs, inputs, generator=generator), hessian.mean()


def reference(W: torch.Tensor, H: torch.Tensor, bits: Bits, group: int, damp: float = 0.01) -> torch.Tensor:
    """OBQ's step in a fixed order, with the inverse of what is left made anew at each (equations 2 and 3)."""
    W, H = W.double().clone(), H.double() + damp * H.diagonal().mean().double() * torch.eye(len(H)).double()
    codes = torch.empty_like(W)
    width = group if bits == "int4" else W.shape[1]
    for q in range(W.shape[1]):
        if q % width == 0:
            grid = grid_of(W[:, q : q + width].float(), bits)
        inverse = torch.linalg.inv(H[q:, q:])
        codes[:, q : q + 1] = grid.encode(W[:, q : q + 1].float()).double()
        error = W[:, q : q + 1] - grid.decode(codes[:, q : q + 1])
        W[:, q:] -= error / inverse[0, 0] * inverse[0]
    return codes


@pytest.mark.parametrize(("bits", "inputs"), [("int8", 96), ("int4", 96), ("int4", 160)])  # 160: more than a block
def test_it_is_the_reference_column_by_column(bits: Bits, inputs: int) -> None:
    W, H = layer(inputs=inputs)
    wanted, found = reference(W, H, bits, 32), gptq(W, H, bits, 32).code_OI
    assert (found != wanted).float().mean() < 0.002  # ties of rounding, in float32 and float64


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("bits", "gain"), [("int8", 0.8), ("int4", 0.8)])
def test_it_beats_rounding_to_nearest_on_its_own_objective(bits: Bits, gain: float, act_order: bool) -> None:
    W, H = layer()
    by_gptq = objective(W, gptq(W, H, bits, 32, act_order), H)
    assert by_gptq < gain * objective(W, round_to_nearest(W, bits, 32), H)


def test_the_objective_is_the_mean_squared_error_of_the_outputs() -> None:
    generator = torch.Generator().manual_seed(3)
    x, W = torch.randn(50, 32, generator=generator), torch.randn(6, 32, generator=generator)
    hessian = Hessian(32)
    hessian.add(x)
    codes = round_to_nearest(W, "int4", 32)
    wanted = ((x @ W.T - x @ codes.decode().T) ** 2).sum(1).mean()
    assert objective(W, codes, hessian.mean()) == pytest.approx(float(wanted), rel=1e-4)


def test_without_inputs_and_for_inputs_that_are_always_zero_it_rounds_to_nearest() -> None:
    W, H = layer()
    kinds: tuple[Bits, Bits] = ("int8", "int4")
    for bits in kinds:
        nearest: Codes = round_to_nearest(W, bits, 32)
        assert torch.equal(gptq(W, Hessian(96).mean(), bits, 32).code_OI, nearest.code_OI)
        dead = H.clone()
        dead[:32], dead[:, :32] = 0, 0
        assert torch.equal(gptq(W, dead, bits, 32).code_OI[:, :32], nearest.code_OI[:, :32])


def test_a_hessian_that_is_not_finite_is_said() -> None:
    W, H = layer()
    with pytest.raises(ValueError, match="NaN on this text"):
        gptq(W, H * float("nan"), "int4", 32)
