"""What `precision = "auto"` means on this machine, remembered, so that asking it again needs no torch.

A fingerprint has "auto" as it was written: which dtype a machine takes is known only where the work runs, and a name
that followed the machine would make one recipe's models again on every other kind. So the manifest says what a model
was computed in (`summary.precision`), and `--plan` says where this machine would take another.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.store.digest import cache_root

MEMORY = "precision.json"


def automatic(use_gpu: bool | str = "auto") -> str:
    """ "bf16" or "fp32": what a training here takes by itself."""
    path, key = cache_root() / MEMORY, _kind_of_machine(use_gpu)
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        known = dict(json.loads(path.read_text(encoding="utf-8")))
    if key not in known:
        known[key] = _ask(use_gpu)
        with contextlib.suppress(OSError):  # asked again the next time
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f"{MEMORY}.{os.getpid()}")
            fresh.write_text(json.dumps(known), encoding="utf-8")
            fresh.replace(path)
    return known[key]


def made_in(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str | None:
    """What a model whose config left it to the machine was computed in; None where the config says it, or nothing."""
    train = config.get("train")
    if not isinstance(train, Mapping) or train.get("precision") != "auto":
        return None
    words = str(summary.get("precision") or "").replace(",", " ").split()
    return words[0] if words and words[0] in ("bf16", "fp32") else None


def _ask(use_gpu: bool | str) -> str:
    import torch

    from model.precision import choose

    device = "cuda" if use_gpu and torch.cuda.is_available() else "cpu"
    return "bf16" if choose("auto", device)[0] == torch.bfloat16 else "fp32"


def _kind_of_machine(use_gpu: bool | str) -> str:
    """Changes with whatever the answer depends on: torch, the processor's instructions, the GPUs."""
    said = [importlib.metadata.version("torch"), platform.machine(), str(bool(use_gpu))]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        said += sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    with contextlib.suppress(OSError):
        said += sorted(str(p.read_bytes()) for p in Path("/proc/driver/nvidia/gpus").glob("*/information"))
    said += [os.environ.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]
