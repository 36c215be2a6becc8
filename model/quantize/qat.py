"""Quantization-aware training: weights are rounded in the forward pass, and gradients pass as if they weren't.

    W' = W + stop_gradient(round(W) - W)        straight-through: Bengio et al. 2013, arXiv 1308.3432
    y  = x' W'^T                                fake quantization: Jacob et al. 2017, arXiv 1712.05877, section 3

What is trained are the weights themselves, under their own names; the grid is made of them anew at each step, and is
the one that rounding to nearest uses afterwards. For "int8-dynamic" each token's activations are rounded likewise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.count import meta_model
from model.decoder import Decoder
from model.layers.moe import MoE
from model.quantization import KEPT, Kind, chosen
from model.quantize.grid import Bits, bits_for, grid_of
from model.quantize.replace import STACKS, linears, take_apart


def fake(weight: Tensor, kind: Kind, group_size: int) -> Tensor:
    """(…, I) -> the values that it would have as codes; the gradient is the identity's."""
    inputs = weight.shape[-1]
    bits: Bits = bits_for("int4" if kind == "int4" else "int8", inputs, group_size)
    with torch.no_grad():
        rows = weight.float().reshape(-1, group_size if bits == "int4" else inputs)
        grid = grid_of(rows, bits)
        change = grid.decode(grid.encode(rows)).view(weight.shape).to(weight.dtype) - weight
    return weight + change


def fake_activations(x: Tensor) -> Tensor:
    """(…, I) -> each token on an INT8 grid of its own; the gradient is the identity's."""
    with torch.no_grad():
        scale = (x.float().abs().amax(-1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        change = ((x / scale).round() * scale).to(x.dtype) - x
    return x + change


class FakeLinear(nn.Linear):
    """A linear that computes as its quantized self would; it takes the other's parameters over."""

    def __init__(self, linear: nn.Linear, kind: Kind, group_size: int) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.kind: Kind = kind
        self.group_size = group_size

    def forward(self, input: Tensor) -> Tensor:
        x = fake_activations(input) if self.kind == "int8-dynamic" else input
        return F.linear(x, fake(self.weight, self.kind, self.group_size), self.bias)


class FakeMoE(MoE):
    """Experts that compute as their quantized selves would. rounded: of each stack, the experts that are."""

    rounded: dict[str, list[int]]
    fake_kind: Kind
    group_size: int

    def stack(self, name: str) -> Tensor | nn.Module | None:
        weight, experts = super().stack(name), self.rounded.get(name)
        if not isinstance(weight, Tensor) or not experts:
            return weight
        parts = list(weight.unbind())
        for expert in experts:
            parts[expert] = fake(parts[expert], self.fake_kind, self.group_size)
        return torch.stack(parts)

    def slots(self, x_MI: Tensor) -> Tensor:
        return fake_activations(x_MI) if self.fake_kind == "int8-dynamic" else x_MI


def prepare(model: Decoder, kind: Kind, group_size: int = 64, keep: tuple[str, ...] = KEPT) -> Decoder:
    """Have the linears that `quantize` would replace compute as if they were; names and parameters stay.

    Raises:
        UserError: a pattern of `keep` matches nothing, or everything.
    """
    names = chosen(list(linears(take_apart(meta_model(model.config)))), keep)
    here = linears(model)
    for name in names:
        if name in here:  # an expert is in a stack
            model.set_submodule(name, FakeLinear(here[name], kind, group_size))
    for prefix, module in list(model.named_modules()):
        if isinstance(module, MoE):
            with torch.device("meta"):
                around = FakeMoE(model.config)
            around.__dict__.update(module.__dict__)  # its parameters and parts
            around.fake_kind, around.group_size = kind, group_size
            around.rounded = {
                stack: [e for e in range(around.n_experts) if f"{prefix}.{stack}.{e}" in names] for stack in STACKS
            }
            model.set_submodule(prefix, around)
    return model
