"""Scales that move from activations into weights and leave the function as it is: what AWQ and SmoothQuant share.

    norm ──x──▶ W1, W2        x' = x / s by the norm's own weight          W' = W diag(s)          x' W'^T = x W^T
    up   ──h──▶ down          h = act(gate) * up, so h' = h / s by the rows of up

A `Fold` is one such place: who makes the activations, who reads them. Every mixer and feed-forward reads the norm
before it through linears alone, a mixture of experts also through its router.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.decoder import Block
from model.layers.feed_forward import FeedForward
from model.layers.moe import MoE
from model.layers.norm import RMSNormPlusOne
from model.quantize.gptq import Hessian
from model.quantize.linear import Experts

MIXER_READERS = ("qkv", "qkvr", "gate_down", "in_proj", "q", "k", "v", "linear_x", "linear_y")


@dataclass(frozen=True)
class Fold:
    """maker: a norm, or the linear `up`; readers: linears of its I outputs, of which `tried` are to be quantized."""

    maker: nn.Module
    readers: Sequence[nn.Linear]
    tried: Sequence[nn.Linear]

    @torch.no_grad()
    def apply(self, scale_I: Tensor) -> None:
        """Divide what is made by `scale_I`, and multiply what it is read by."""
        weight = self.maker.weight
        assert isinstance(weight, Tensor)
        if isinstance(self.maker, RMSNormPlusOne):
            weight.copy_((1 + weight) / scale_I - 1)
        else:
            weight.div_(scale_I if weight.ndim == 1 else scale_I[:, None])
        bias = getattr(self.maker, "bias", None)
        if bias is not None:
            bias.div_(scale_I)
        for reader in self.readers:
            reader.weight.mul_(scale_I)


class Seen(Hessian):
    """Of activations (…, I): the Hessian, and each channel's mean and largest magnitude."""

    def __init__(self, inputs: int, device: torch.device | str = "cpu") -> None:
        super().__init__(inputs, device)
        self._sum_I, self.largest_I = torch.zeros(inputs, device=device), torch.zeros(inputs, device=device)

    def add(self, x: Tensor) -> None:
        super().add(x)
        size_NI = x.reshape(-1, x.shape[-1]).float().abs()
        self._sum_I += size_NI.sum(0)
        self.largest_I = torch.maximum(self.largest_I, size_NI.amax(0))

    def sees_output(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook of a norm."""
        self.add(output)

    @property
    def mean_I(self) -> Tensor:
        return self._sum_I / max(self.count, 1)


def folds(block: Block) -> list[Fold]:
    """A block's places, of a model that was taken apart (replace.py)."""
    found = []
    if block.mixer_norm is not None:
        readers = [getattr(block.mixer, name) for name in MIXER_READERS if hasattr(block.mixer, name)]
        found.append(Fold(block.mixer_norm, readers, readers))
    if block.ff_norm is not None and block.feed_forward is not None:
        readers = _readers(block.feed_forward)
        router = [block.feed_forward.router] if isinstance(block.feed_forward, MoE) else []
        found.append(Fold(block.ff_norm, [*router, *readers], readers))
    if isinstance(block.feed_forward, FeedForward) and block.feed_forward.gate is not None:
        found.append(Fold(block.feed_forward.up, [block.feed_forward.down], [block.feed_forward.down]))
    return found


def _readers(part: nn.Module) -> list[nn.Linear]:
    """The linears that a feed-forward's input goes through first."""
    if isinstance(part, MoE):
        stacks = [stack for stack in (part.gate, part.up) if isinstance(stack, Experts)]
        own = [] if part.shared is None else _readers(part.shared)
        return [linear for stack in stacks for linear in stack if isinstance(linear, nn.Linear)] + own
    assert isinstance(part, FeedForward)
    return [linear for linear in (part.gate, part.up) if linear is not None]


@contextmanager
def watched(places: Sequence[Fold]) -> Iterator[list[Seen]]:
    """Within this, what each place's readers are given is added up."""
    seen, hooks = [], []
    for fold in places:
        one = Seen(fold.readers[0].in_features, fold.readers[0].weight.device)
        seen.append(one)
        if isinstance(fold.maker, nn.Linear):
            hooks.append(fold.readers[0].register_forward_pre_hook(one.sees_inputs))
        else:
            hooks.append(fold.maker.register_forward_hook(one.sees_output))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
