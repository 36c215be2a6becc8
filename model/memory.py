"""How many bytes a training step needs on one device without sharding; nothing is allocated.

Weights, gradients and moments are exact. Activations are asked of autograd: one block of each kind runs on fake
tensors, which have shapes and no data, and what it saves for backward is added up, so that a new mixer is counted
without a formula of its own. Left out: gradients in passing, the allocator's slack, and what libraries keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.config import ModelConfig
from model.count import meta_model, parameters
from model.decoder import Block
from model.layers.feed_forward import activate
from model.layers.moe import MoE
from model.objectives.next_token import logits_bytes
from model.recompute import KEPT
from model.segments import Segments
from model.train_config import Checkpointing, Optimizer


@dataclass(frozen=True)
class Memory:
    """Bytes of each kind."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def memory(
    config: ModelConfig,
    micro_batch_size: int,
    seq_len: int,
    *,
    optimizer: Optimizer = "adamw",
    checkpointing: Checkpointing = "none",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Memory:
    """Of a step on micro-batches of whole rows of `seq_len`.

    Weights, gradients and moments are kept in fp32; `dtype` is what the forward pass computes in.
    """
    model = meta_model(config)
    roles = model.parameter_roles()
    total = parameters(config).total
    matrix = sum(p.numel() for name, p in model.named_parameters() if roles[name].kind == "matrix")
    moments = 2 * total - (matrix if optimizer == "muon" else 0)
    kinds = list(zip(config.layer_mixers, config.layer_feed_forwards, strict=True))
    blocks = {kind: _block(config, kinds.index(kind), micro_batch_size, seq_len, dtype) for kind in set(kinds)}
    if checkpointing == "none":
        kept = sum(blocks[kind].all for kind in kinds)
    elif checkpointing == "full":  # and one block's are made again at a time
        kept = sum(blocks[kind].input for kind in kinds) + max(b.all for b in blocks.values())
    else:
        kept = sum(blocks[kind].input + blocks[kind].selected for kind in kinds)
        kept += max(b.all - b.selected for b in blocks.values())
    rows, V, D = micro_batch_size * seq_len, config.vocab_size, config.d_model
    ends = 3 * rows * D * dtype.itemsize  # the last norm's input and output, and the output's gradient
    head = logits_bytes(rows, V, torch.device(device), dtype, config.logit_softcap is not None)
    head += V * D * 4  # the weight's gradient
    return Memory(4 * total, 4 * total, 4 * moments, kept + ends + head)


def state_bytes(config: ModelConfig, rows: int, length: int, dtype: torch.dtype = torch.float32) -> int:
    """What generation remembers of `rows` rows of at most `length` tokens: caches of keys and values, scans' states."""
    return meta_model(config).new_state(rows, length, "meta", dtype).nbytes


@dataclass(frozen=True)
class _Kept:
    """Bytes of what one block keeps for backward: everything, its input, what "selective" keeps besides."""

    all: int
    input: int
    selected: int


def _block(config: ModelConfig, layer: int, batch: int, length: int, dtype: torch.dtype) -> _Kept:
    with FakeTensorMode(), torch.device("cpu"):
        block = Block(config, layer)
        if isinstance(block.feed_forward, MoE):
            block.feed_forward = _Even(config)
        x_BTD = torch.empty(batch, length, config.d_model, dtype=dtype, requires_grad=True)
        cast = torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext()
        with _saved(block) as saved, _Selected() as selected, cast:
            block(x_BTD, Segments.unbroken(batch, length), None)
        size = x_BTD.numel() * x_BTD.itemsize
        return _Kept(_bytes(saved), size, _bytes(selected.outputs))


@contextmanager
def _saved(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what autograd saves inside, the module's own weights left out."""
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    tensors: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            tensors.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield tensors


class _Selected(TorchDispatchMode):
    """Collects the outputs of the operations that "selective" keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in KEPT:
            self.outputs += [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        return out


def _bytes(tensors: list[Tensor]) -> int:
    """Of their memory, shared memory once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


class _Even(MoE):
    """MoE as if each expert got its even share.

    A fake router's choice is unknown, and what is kept doesn't depend on it. One expert's weights stand for all.
    """

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        p_NE = torch.softmax(self.router(x_ND).float(), 1)
        weight_NK = p_NE[:, : self.top_k] / p_NE[:, : self.top_k].sum(1, keepdim=True)
        x_1MD = x_ND.repeat_interleave(self.top_k, 0)[None]
        gate = None if self.gate is None else x_1MD @ self.gate[:1].mT
        y_1MD = activate(self.kind, gate, x_1MD @ self.up[:1].mT) @ self.down[:1].mT
        y_ND = (weight_NK[:, None] @ y_1MD.view(-1, self.top_k, y_1MD.shape[-1])).squeeze(1)
        if self.shared is not None:
            y_ND = y_ND + self.shared(x_ND)
        return y_ND.view(x_BTD.shape)
