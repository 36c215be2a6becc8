"""Attention over packed documents in one kernel, where torch has it.

Flash attention with cumulative lengths (Dao 2023, arXiv 2307.08691), on CUDA in half precision. Elsewhere documents are
regrouped by length (segments.by_document).

Not yet run on a GPU; its use of the kernel's arguments is tested against a plain stand-in for the kernel.
"""

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from model.segments import Segments

KERNEL = "torch_attn::_varlen_attn"  # what autograd sees of it


@functools.cache
def available() -> bool:
    """Whether this torch has the kernel. Its module imports torch._dynamo, a second that only CUDA has use for."""
    try:
        return importlib.util.find_spec("torch.nn.attention.varlen") is not None
    except ModuleNotFoundError:
        return False


def usable(x: Tensor, segments: Segments) -> bool:
    """Whether documents packed in `segments` can be mixed by the one kernel; `x` is any of their activations."""
    half = x.dtype in (torch.bfloat16, torch.float16)
    return x.is_cuda and half and not segments.whole and segments.lengths_B is None and available()


def varlen_attn(*args: Any, **options: Any) -> Any:
    """torch.nn.attention.varlen.varlen_attn, imported when it is first called."""
    from torch.nn.attention.varlen import varlen_attn as kernel

    return kernel(*args, **options)


def attend_documents(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, segments: Segments, *, causal: bool, scale: float | None
) -> Tensor:
    """Each token's mixture of its own document, (B, T, H, D)."""
    T, bounds_N = q_BTHD.shape[1], segments.bounds_N
    q, k, v = (x.flatten(0, 1).contiguous() for x in (q_BTHD, k_BTKD, v_BTKD))
    mixed = varlen_attn(
        q,
        k,
        v,
        bounds_N,
        bounds_N,
        T,  # no document is longer than its row
        T,
        scale=scale,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=q_BTHD.shape[2] != k_BTKD.shape[2],
    )
    assert isinstance(mixed, Tensor)
    return mixed.unflatten(0, q_BTHD.shape[:2])
