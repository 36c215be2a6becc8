"""Post-training quantization, block by block, as GPTQ's authors do: each sees the inputs that it will really get.

    rows ─ embedding ─▶ block 0 ─▶ block 1 ─ … ─▶ norm ─▶ head
                        1. run it: what comes in is added up, and channels are scaled     (awq, smoothquant)
                           run it: its linears' inputs add up to a Hessian each           (gptq)
                        2. quantize its linears
                        3. run it again: the next block's inputs, with its error in them

Memory is a few hidden states and one block's Hessians, whatever the depth.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from model.decoder import Block, Decoder
from model.quantization import KEPT, Kind, Quantization, chosen
from model.quantize.awq import awq_scale
from model.quantize.gptq import Hessian, gptq
from model.quantize.grid import Bits, Codes, round_to_nearest
from model.quantize.replace import how, linears, round_wide, swap, take_apart
from model.quantize.scaling import folds, watched
from model.quantize.smoothquant import smooth_scale
from model.segments import Segments

Method = Literal["rtn", "gptq", "awq", "smoothquant"]


@torch.no_grad()
def quantize(
    model: Decoder,
    kind: Kind,
    method: Method = "rtn",
    group_size: int = 64,
    keep: tuple[str, ...] = KEPT,
    rows: Sequence[tuple[Tensor, Tensor]] = (),
    act_order: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Quantization:
    """Quantize a model's linears in place; what was done is also `model.quantization`.

    Args:
        keep: patterns of names that stay as they are, see `chosen`.
        rows: calibration text for all but "rtn": pairs of tokens and positions, both (B, T), as `Segments` reads them.
        act_order: GPTQ takes the inputs that matter most first.
        progress: hears how many linears are done, of how many; what it raises ends the work.
    Raises:
        UserError: a pattern of `keep` matches nothing, or everything.
    """
    take_apart(model.eval())
    found = linears(model)
    names = chosen(list(found), keep)
    layers: dict[str, str] = {}

    def one(name: str, hessian: Hessian | None) -> None:
        linear = found[name]
        as_kind = how(kind, linear.in_features, group_size)
        swap(model, name, codes_of(linear.weight, as_kind, group_size, hessian, act_order), as_kind, group_size)
        layers[name] = as_kind
        progress(len(layers), len(names))

    states = [_embedded(model, *row) for row in rows] if method != "rtn" else []
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        own = [name for name in names if name.startswith(f"blocks.{number}.")]
        if method in ("awq", "smoothquant"):
            _scale(block, states, method, "int4" if kind == "int4" else "int8", group_size)
        with seen({name: found[name] for name in own} if method == "gptq" else {}) as hessians:
            if method == "gptq":
                _through(block, states)
        for name in own:
            one(name, hessians.get(name))
        states = _through(block, states)
    outside = [name for name in names if name not in layers]
    with seen({name: found[name] for name in outside} if method == "gptq" else {}) as hessians:
        for x, _ in states:
            hidden = model.norm(x)
            for name in outside:
                found[name](hidden)
    for name in outside:
        one(name, hessians.get(name))
    round_wide(model)
    model.quantization = Quantization(kind, group_size, method, layers)
    return model.quantization


def codes_of(weight: Tensor, kind: str, group_size: int, hessian: Hessian | None, act_order: bool = False) -> Codes:
    """By GPTQ where the layer's inputs are known, else to nearest."""
    bits: Bits = "int4" if kind == "int4" else "int8"
    if hessian is None:
        return round_to_nearest(weight, bits, group_size)
    return gptq(weight, hessian.mean(), bits, group_size, act_order)


@contextmanager
def seen(found: dict[str, nn.Linear]) -> Iterator[dict[str, Hessian]]:
    """Within this, each linear's inputs are added up by its name."""
    hessians = {name: Hessian(linear.in_features, linear.weight.device) for name, linear in found.items()}
    hooks = [linear.register_forward_pre_hook(hessians[name].sees_inputs) for name, linear in found.items()]
    try:
        yield hessians
    finally:
        for hook in hooks:
            hook.remove()


_State = tuple[Tensor, Segments]


def _embedded(model: Decoder, tokens_BT: Tensor, positions_BT: Tensor) -> _State:
    """What the first block gets."""
    x = model.embedding(tokens_BT)
    x = x * model.config.embedding_scale if model.config.embedding_scale != 1 else x
    segments = Segments.from_positions(positions_BT)
    return (x if model.positions is None else x + model.positions(segments.positions_BT)), segments


def _through(block: nn.Module, states: list[_State]) -> list[_State]:
    return [(block(x, segments, None), segments) for x, segments in states]


def _scale(block: Block, states: list[_State], method: Method, bits: Bits, group_size: int) -> None:
    """Scale a block's channels, which leaves its function as it is; one place after another."""
    places = folds(block)
    with watched(places) as seen_here:
        _through(block, states)
    for fold, one in zip(places, seen_here, strict=True):
        scale_I = awq_scale(fold, one, bits, group_size) if method == "awq" else smooth_scale(fold, one)
        fold.apply(scale_I)
