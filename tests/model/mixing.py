"""What every mixer with a state must do, against a naive loop over one document: `naive(mixer, x_TD) -> y_TD`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.mixers import mixer_class
from model.segments import Segments

Naive = Callable[[Any, Tensor], Tensor]
PACKINGS = ([[7, 1, 24], [13, 19], [32]], [[1, 1, 29, 1], [16, 16], [9, 23]], [[32], [32], [32]])


def lively_mixer(name: str, config: ModelConfig) -> Any:
    """With weights large enough that every part matters."""
    mixer = mixer_class(name)(config, 0)
    mixer.init_weights(torch.Generator().manual_seed(0), 0.3, 0.3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return mixer


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def segments_of(packing: list[list[int]]) -> Segments:
    return Segments.from_positions(torch.stack([torch.cat([torch.arange(n) for n in row]) for row in packing]))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    expected = expected.detach()
    size = float(expected.abs().amax()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * max(1.0, size))


def check_packed_rows(mixer: Any, naive: Naive, packing: list[list[int]]) -> None:
    """Outputs, and gradients of the input and of every weight, of packed documents as of each alone."""
    x = random(3, 32, 32).requires_grad_()
    weights = random(3, 32, 32, seed=1)
    packed, _ = mixer(x, segments_of(packing))
    (packed * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in mixer.named_parameters()} | {"x": x.grad}
    mixer.zero_grad()
    x.grad = None
    alone = []
    for row, lengths in enumerate(packing):
        alone.append(torch.cat([naive(mixer, part) for part in x[row].split(lengths)]))
    expected = torch.stack(alone)
    close(packed, expected)
    (expected * weights).sum().backward()
    for name, p in {**dict(mixer.named_parameters()), "x": x}.items():
        close(gradients[name], p.grad, 1e-3)


@torch.no_grad()
def check_generation(mixer: Any, naive: Naive) -> None:
    """A ragged prefill, a ragged turn of several tokens (one row has none), one token at a time; some rows only."""
    T = 17
    text = random(3, 40, 32)
    lengths = torch.tensor([1, 9, 17])
    state = mixer.new_state(3, 40, "cpu", torch.float32)
    turns = [(lengths, T), (torch.tensor([6, 0, 3]), 6), (None, 1), (None, 1), (None, 4)]
    offset, earlier = torch.zeros(3, dtype=torch.long), 0
    expected = torch.stack([naive(mixer, row) for row in text])
    for real, length in turns:
        at = (offset[:, None] + torch.arange(length)).clamp(max=39)
        x = text[torch.arange(3)[:, None], at].clone()
        if real is not None:
            x[torch.arange(length) >= real[:, None]] = 1e3  # pads
        y, state = mixer(x, Segments.continued(offset, length, real, earlier), state)
        for row in range(3):
            n = length if real is None else int(real[row])
            close(y[row, :n], expected[row, offset[row] : offset[row] + n])
        offset, earlier = offset + (length if real is None else real), earlier + length
    rows = torch.tensor([2, 0])
    x = text[rows, offset[rows]][:, None]
    y, _ = mixer(x, Segments.continued(offset[rows], 1, None, earlier), state.select(rows))
    close(y[:, 0], expected[rows, offset[rows]])


@torch.no_grad()
def check_a_document_is_cut_off_from_another(mixer: Any) -> None:
    """To the bit, even if the other one is not finite."""
    segments = segments_of([[11, 21], [32]])
    x = random(2, 32, 32)
    before, _ = mixer(x, segments)
    for other in (random(11, 32, seed=2), torch.full((11, 32), 1e30), torch.full((11, 32), float("inf"))):
        x[0, :11] = other
        after, _ = mixer(x, segments)
        assert torch.equal(before[0, 11:], after[0, 11:]) and torch.equal(before[1], after[1])
        assert not torch.equal(before[0, :11], after[0, :11])


def check_equals_theirs(ours: Any, theirs: Any, their_forward: Callable[[Tensor], Tensor]) -> None:
    """Outputs and gradients of `transformers`' module with the same random weights, which map by their names alone."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    ours.load_state_dict(theirs.state_dict())
    x, weights = random(2, 45, 32), random(2, 45, 32, seed=1)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    y, _ = ours(inputs[0], Segments.unbroken(2, 45))
    expected = their_forward(inputs[1])
    close(y, expected)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    close(inputs[0].grad, inputs[1].grad, 1e-3)
    for name, p in theirs.named_parameters():
        close(ours.get_parameter(name).grad, p.grad, 1e-3)


def products_per_token(mixer: Any, length: int) -> float:
    """FLOPs of the matrix products that a forward pass of one row really does, beyond its linear layers'."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mixer(random(1, length, 32), Segments.unbroken(1, length))
    linear = sum(m.weight.numel() for m in mixer.modules() if isinstance(m, torch.nn.Linear))
    return counter.get_total_flops() / length - 2 * linear
