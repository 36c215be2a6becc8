"""A model's linears are found by name, and replaced by quantized ones; experts in stacks are taken apart for that.

names(model)                 blocks.0.mixer.qkv, blocks.0.feed_forward.up, … .up.3 of an expert, head
swap(model, name, codes)     the linear of that name becomes an Int8Linear or an Int4Linear
shells(model, quantization)  the same without values: what a checkpoint is loaded into
widened(model)               back: a decoder whose weights are the numbers that the codes stand for
"""

import torch
from torch import nn

from model.decoder import Decoder
from model.layers.moe import MoE
from model.quantization import Kind, Quantization
from model.quantize.grid import Codes, bits_for
from model.quantize.int4 import Int4Linear
from model.quantize.int8 import Int8Linear
from model.quantize.linear import Experts, QuantizedLinear

STACKS = ("gate", "up", "down")  # of a MoE's experts, (E, O, I) each


def take_apart(model: Decoder) -> Decoder:
    """Each MoE's stacks become `Experts` of linears, which share their memory; the function stays the same."""
    for module in list(model.modules()):
        if isinstance(module, MoE):
            for name in STACKS:
                stack = getattr(module, name)
                if isinstance(stack, nn.Parameter):
                    delattr(module, name)
                    setattr(module, name, Experts(_linear(weight) for weight in stack.detach()))
    return model


def _linear(weight_OI: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight_OI)
    return linear


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear by its name, of a model that was taken apart."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def how(kind: Kind, inputs: int, group_size: int) -> Kind:
    """What a linear of so many inputs becomes: `kind`, or int8 where int4's groups don't come out even."""
    return "int8" if kind == "int4" and bits_for("int4", inputs, group_size) == "int8" else kind


def shell(linear: nn.Linear, kind: str, group_size: int) -> QuantizedLinear:
    """A quantized linear of this one's sizes, on its device, without values."""
    inputs, outputs, bias = linear.in_features, linear.out_features, linear.bias is not None
    with torch.device(linear.weight.device):
        if kind == "int4":
            return Int4Linear(inputs, outputs, bias, group_size)
        return Int8Linear(inputs, outputs, bias, dynamic=kind == "int8-dynamic")


@torch.no_grad()
def swap(model: Decoder, name: str, codes: Codes, kind: str, group_size: int) -> QuantizedLinear:
    """Replace one linear."""
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    quantized = shell(linear, kind, group_size)
    quantized.fill(codes)
    if quantized.bias is not None:
        quantized.bias.copy_(linear.bias)
    model.set_submodule(name, quantized)
    return quantized


def shells(model: Decoder, quantization: Quantization) -> Decoder:
    """Make room for quantized weights. KeyError names a layer that the model hasn't."""
    take_apart(model)
    found = linears(model)
    for name, kind in quantization.layers.items():
        model.set_submodule(name, shell(found[name], kind, quantization.group_size))
    model.quantization = quantization
    return model


def in_bfloat16(model: Decoder) -> list[str]:
    """A quantized model's float32 matrices, and the scales and zeros of its codes, which bfloat16 holds exactly."""
    names = []
    for prefix, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.Linear):
            names.append(f"{prefix}.weight")
        elif isinstance(module, QuantizedLinear):
            names += [f"{prefix}.{name}" for name, buffer in module.named_buffers() if buffer.is_floating_point()]
    return names


@torch.no_grad()
def round_wide(model: Decoder) -> None:
    """Round what the file holds in bfloat16 to it, so that the model in memory is the one that is saved."""
    for name in in_bfloat16(model):
        parent, _, last = name.rpartition(".")
        tensor = getattr(model.get_submodule(parent), last)
        tensor.copy_(tensor.bfloat16())


@torch.no_grad()
def widened(model: Decoder) -> Decoder:
    """A decoder of plain weights, on the CPU, that stands for the same function up to how products round."""
    wide = Decoder(model.config)
    for name, parameter in wide.named_parameters():
        parent, _, last = name.rpartition(".")
        module = model.get_submodule(parent)
        value = getattr(module, last)
        if isinstance(value, Experts):
            value = torch.stack([_weight(expert) for expert in value])
        parameter.copy_(value)
    for name, buffer in wide.named_buffers():
        buffer.copy_(model.get_buffer(name))
    return wide.eval()


def _weight(linear: nn.Module) -> torch.Tensor:
    weight = linear.weight
    assert isinstance(weight, torch.Tensor)
    return weight
