"""Activation checkpointing: what backward needs of a block is kept, or made again when backward comes to it.

    none        everything that autograd asks for
    full        a block's input alone (Chen et al. 2016, arXiv 1604.06174); costs a second forward
    selective   its input, and what its products with weights and its attention gave; the cheap rest (norms, rotations,
                activations, gates, scans) is made again (after Korthikanti et al. 2022, arXiv 2205.05198, section 5)

An output of a product over K channels costs 2K FLOPs an element, where K is the model's width, and is worth its
memory; elementwise work costs a few, and a product of activations by activations (scores, chunks of a scan) a head's
size. The same operations run in the same order, so gradients are the same bit for bit.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from model.kernels import blocked, varlen
from model.train_config import Checkpointing

KEPT = frozenset(
    getattr(torch.ops.aten, name).default
    for name in (
        "mm",
        "addmm",
        "_grouped_mm",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
    if hasattr(torch.ops.aten, name)
) | {blocked.KERNEL}


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT or op.name() == varlen.KERNEL else CheckpointPolicy.PREFER_RECOMPUTE


def run(block: nn.Module, kind: Checkpointing, *args: Any) -> Tensor:
    """`block(*args)`, keeping for backward what `kind` says."""
    if kind == "none" or not torch.is_grad_enabled():
        return block(*args)
    recomputed = partial(checkpoint, block, *args, use_reentrant=False, preserve_rng_state=False)  # no random numbers
    if kind == "full":
        return recomputed()  # type: ignore[return-value]
    # Backward must meet the same operations, so autocast's memory of weights that were cast before is left aside.
    remembers = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        return recomputed(context_fn=partial(create_selective_checkpoint_contexts, _policy))  # type: ignore[return-value]
    finally:
        torch.set_autocast_cache_enabled(remembers)
