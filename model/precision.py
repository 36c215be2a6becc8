"""Which dtype matrix products run in, asked of the machine and never assumed; and how fast they can go here.

On a CPU without AVX512-bf16 or AMX torch's bf16 product falls back to a scalar loop, tens of times slower than fp32.
Weights, gradients and optimizer state are fp32 always; bf16 is autocast's dtype.
"""

import time
from functools import cache

import torch

from model.train_config import Precision


def choose(precision: Precision, device: torch.device | str = "cpu") -> tuple[torch.dtype, str]:
    """(the dtype to compute in, why): the reason belongs in the run's record."""
    has, why = has_bf16(torch.device(device))
    if precision == "fp32":
        return torch.float32, "fp32 was asked for"
    if precision == "bf16":
        if has:
            return torch.bfloat16, f"bf16 was asked for, and {why}"
        return torch.bfloat16, f"bf16 was asked for, but {why}: expect steps 10 to 100 times slower than fp32"
    if has:
        return torch.bfloat16, f"bf16, since {why}"
    return torch.float32, f"fp32, since {why}"


def has_bf16(device: torch.device) -> tuple[bool, str]:
    """(whether products in bf16 are fast there, why it is thought so)."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        has = major >= 8
        return has, f"the GPU's compute capability {major}.{minor} {'has' if has else 'lacks'} bf16"
    if device.type == "cpu":
        try:
            has = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        except (AttributeError, RuntimeError):
            has = False
        return has, f"this processor {'has' if has else 'lacks'} bf16 matrix instructions"
    return False, f"bf16 is not trusted on {device.type}"


@cache
def matmul_peak(device: str = "cpu", dtype: torch.dtype = torch.float32, threads: int | None = None) -> float:
    """FLOP/s of a large square matrix product here, the best of a few; measured once per process.

    What model-FLOPs utilisation is a share of. `threads` is only part of the cache's key.
    """
    best = 0.0
    for size in (256, 1024) if device.startswith("cpu") else (8192,):
        a = torch.randn(size, size, device=device).to(dtype)
        out = torch.empty_like(a)
        for _ in range(8):
            begin = time.perf_counter()
            torch.mm(a, a, out=out)
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - begin
            best = max(best, 2 * size**3 / seconds)
        if seconds > 0.02:  # without instructions for this dtype the next size would take minutes
            break
    return best
