"""How a model is trained: a plain frozen dataclass, without torch, read by pydantic as a recipe's `[train]`.

A field marked `HOW` changes how fast or where something runs, never its result, and stays out of fingerprints.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from model.checks import HOW, at_least, choose, positive
from model.errors import UserError
from model.objective import OBJECTIVES

Schedule = Literal["cosine", "wsd", "linear", "constant"]
Optimizer = Literal["adamw", "muon"]
Precision = Literal["auto", "fp32", "bf16"]
Checkpointing = Literal["none", "selective", "full"]

CPU_MICRO_BYTES = 8192  # of one channel: 2,048 tokens in fp32, 4,096 in bf16 (docs/lab.md)


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. `batch_size` counts the rows of the *global* batch, over all workers."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    objective: str = "next_token"  # a name in model/objective.py
    steps: int = 1000
    batch_size: int = 32
    seq_len: int = 256
    lr: float = 1e-3
    min_lr_ratio: float = 0.1
    warmup_steps: int = 50
    schedule: Schedule = "cosine"
    decay_fraction: float = 0.2  # of the steps, for "wsd"
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0  # of the global gradient norm; 0: off
    z_loss: float = 0.0  # times logsumexp(logits)^2
    precision: Precision = "auto"
    micro_batch_size: int | None = field(
        default=None, metadata=HOW
    )  # rows at once on a worker; None: see `rows_at_once`
    checkpoint_every: int = field(default=200, metadata=HOW)  # steps; 0: only at the end or when stopped
    activation_checkpointing: Checkpointing = field(default="none", metadata=HOW)

    def __post_init__(self) -> None:
        choose("objective", self.objective, tuple(OBJECTIVES))
        choose("schedule", self.schedule, get_args(Schedule))
        choose("optimizer", self.optimizer, get_args(Optimizer))
        choose("precision", self.precision, get_args(Precision))
        choose("activation_checkpointing", self.activation_checkpointing, get_args(Checkpointing))
        for name in ("steps", "batch_size", "micro_batch_size"):
            at_least(name, getattr(self, name), 1)
        at_least("seq_len", self.seq_len, 2)
        for name in ("warmup_steps", "checkpoint_every", "weight_decay", "grad_clip", "z_loss"):
            at_least(name, getattr(self, name), 0)
        positive("lr", self.lr)
        for name in ("min_lr_ratio", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} = {getattr(self, name)} must be between 0 and 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)} must be at least 0 and below 1")

    def rows_at_once(self, rows: int, length: int, device_type: str, itemsize: int = 4) -> int:
        """How many of a worker's `rows` of `length` tokens go through the model together: the micro-batch.

        itemsize: bytes of a number of the dtype that the forward pass computes in.
        """
        if self.micro_batch_size is not None:
            return min(rows, self.micro_batch_size)
        return min(rows, max(1, CPU_MICRO_BYTES // itemsize // length)) if device_type == "cpu" else rows
