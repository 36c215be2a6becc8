"""What a stage would cost, for `--plan`: counted without allocating anything.

The time of a training is its FLOPs over this machine's measured matmul rate, times the share of it that training (or
sampling) reaches, and the start of its workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Share of the matmul rate that a training step reaches: measured on 2 cores at widths 128 to 256 (0.40 to 0.58), and
# the usual 0.35 to 0.45 of well-tuned training on GPUs.
UTILISATION = {"cpu": 0.45, "cuda": 0.40}
# The same of sampling, one token a row at a time: measured 0.22 and 0.42 at widths 128 and 256 with 128 rows on a CPU;
# a guess on GPUs, where it is bound by memory.
SAMPLING = {"cpu": 0.25, "cuda": 0.05}
STARTING = 20.0  # seconds until a training's workers are there and have imported torch; measured on 2 cores


@dataclass(frozen=True)
class Machine:
    """What a plan knows of a machine: FLOP/s of matrix products in a dtype (None: fp32) on "cpu" or "cuda"."""

    rate: float
    device: str = "cpu"
    dtype: torch.dtype | None = None

    def work(self, what: str, tokens: int, flops: float, reached: dict[str, float] = UTILISATION) -> Work:
        """Work of so many FLOPs here, at the share of the rate that it reaches."""
        return Work(what, tokens, flops, flops / (self.rate * reached[self.device]))


@dataclass(frozen=True)
class Work:
    """Tokens that pass through the model in one way, and what that costs."""

    what: str
    tokens: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class Cost:
    """What one step costs."""

    name: str
    works: tuple[Work, ...]
    memory: int  # bytes on one worker
    checkpointing: str

    @property
    def tokens(self) -> int:
        return sum(work.tokens for work in self.works)

    @property
    def flops(self) -> float:
        return sum(work.flops for work in self.works)

    @property
    def seconds(self) -> float:
        return sum(work.seconds for work in self.works)
