"""The training loop in bare torch: the same in a notebook, in a test and inside Ray Train on many workers.

    each step: micro-batches -> sums of losses and of gradients -> ONE all-reduce -> / number of valid tokens
               -> clip by global norm -> optimizer -> report -> maybe checkpoint

Gradients are views of one flat fp32 buffer whose tail carries the step's scalars (loss, valid tokens, the wish to stop;
see parallel/replicated.py), so that one fixed all-reduce per step settles everything: N steps equal k steps, a resume
and N - k steps bit for bit, and no rank can stop alone. The loss is a sum over the *global* batch's valid tokens
divided by their number, so micro-batches, uneven masks and the number of workers don't change it.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import checkpoint
from model.balance import Balances
from model.count import StepFlops
from model.decoder import Decoder
from model.errors import UserError
from model.files import named, read_json
from model.objective import objective_class
from model.objectives.next_token import Batch
from model.optim.groups import load_optimizers, make_optimizers, save_optimizers
from model.optim.schedule import learning_rate
from model.parallel.replicated import COUNT, Replicated
from model.precision import choose, matmul_peak
from model.train_config import TrainConfig

__all__ = [
    "Batch",
    "Loss",
    "StepReport",
    "TrainConfig",
    "TrainResult",
    "TrainerState",
    "as_trained",
    "micro_batches",
    "read_state",
    "train",
]

OPTIMIZER, STATE = "optimizer.safetensors", "trainer.json"

Loss = Callable[[Decoder, Any], tuple[Tensor, Tensor, dict[str, Tensor]]]
"""(model, micro-batch) -> (sum of losses to go backward from, number it is divided by, sums to report)."""


@dataclass(frozen=True)
class StepReport:
    """One step, the same on every rank; loss and extras are means over the global batch's valid tokens."""

    step: int  # steps done, this one included
    loss: float
    lr: float
    grad_norm: float  # before clipping
    tokens: int  # of the global batch
    tokens_per_second: float
    mfu: float  # model FLOPs / (seconds * matmul rate measured on this device * workers)
    seconds: float
    skipped: int  # steps so far whose gradient was not finite and was thrown away
    extras: dict[str, float] = field(default_factory=dict)


@dataclass
class TrainerState:
    """What `trainer.json` holds beside weights and optimizer; `extra` is the caller's."""

    step: int = 0
    tokens: int = 0
    skipped: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainResult:
    step: int
    stopped: bool  # asked to by a callback, before the last step
    loss: float  # of the last step run here; nan if there was none
    tokens: int  # since the first step of all
    skipped: int
    seconds: float  # spent here
    precision: str  # what was chosen, and why


def read_state(folder: Path | str) -> TrainerState:
    """Where a checkpoint's run was. Raises UserError for what is no such state."""
    path = Path(folder) / STATE
    with named(path):
        values = read_json(path)
        state = TrainerState(**values)
        for name in ("step", "tokens", "skipped"):
            if type(values.get(name)) is not int or values[name] < 0:
                raise UserError(f"{path} has no count {name!r}: it is no state of a training.")
        if not isinstance(state.extra, dict):
            raise UserError(f"{path} has an 'extra' that is no object.")
    return state


def train(
    model: Decoder,
    batches: Callable[[int], Any],
    config: TrainConfig,
    *,
    objective: Loss | None = None,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    on_step: Callable[[StepReport], bool | None] | None = None,
    save: Callable[[int, Callable[..., None]], None] | None = None,
    resume: Path | str | None = None,
) -> TrainResult:
    """Train `model` in place, from step 0 or from the checkpoint folder `resume`, up to `config.steps`.

    batches: step (from 0) -> this rank's rows of that global batch, a NamedTuple of tensors with rows first. A rank
        that has none gives a row without a loss: every rank goes through every step.
    objective: the loss; default: that of `config.objective`.
    on_step: sees each report, on every rank; True from any rank asks to stop: at this step if there is one rank, with
        the next step if there are several (they agree in its all-reduce). A checkpoint is saved then.
    save: (step, write) on every rank, every `checkpoint_every` steps, when stopped and at the end.
        `write(folder, **extra)` fills a folder that `resume` takes; call it on rank 0 only, ranks hold the same.
    Raises: what `batches`, the objective or `save` raise, on their rank alone. Whoever started the ranks ends the
        others, which wait in the all-reduce: torchrun, torch.multiprocessing and cluster/train/fit.py do.
    """
    loss_of: Loss = objective or objective_class(config.objective)(config, model.config).loss
    device = torch.device(device)
    dtype, reason = choose(config.precision, device)
    model.to(device).train()
    model.checkpointing = config.activation_checkpointing
    optimizers = make_optimizers(model, config)
    state = TrainerState()
    if resume is not None:
        checkpoint.load_weights(model, resume)
        load_optimizers(optimizers, model, Path(resume) / OPTIMIZER)
        state = read_state(resume)
    balances = Balances(model)
    gradients = Replicated([p for p in model.parameters() if p.requires_grad], device, sum(balances.sizes))
    flops = StepFlops(model.config)
    peak = matmul_peak(str(device), dtype, torch.get_num_threads()) * world_size

    def write(folder: Path | str, **extra: Any) -> None:
        checkpoint.save_model(model, folder)
        save_optimizers(optimizers, model, Path(folder) / OPTIMIZER)
        values = {"step": state.step, "tokens": state.tokens, "skipped": state.skipped, "extra": extra}
        (Path(folder) / STATE).write_text(json.dumps(values), encoding="utf-8")

    began, loss, stop, stopped, saved = time.perf_counter(), float("nan"), False, False, state.step
    while state.step < config.steps and not stopped:
        begin = time.perf_counter()
        batch = _to(batches(state.step), device)
        gradients.zero()
        extras: dict[str, Tensor] = {}
        loss_sum, n_valid = torch.zeros((), device=device), 0
        for micro in micro_batches(batch, config, dtype):
            with torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext():
                micro_loss, micro_valid, micro_extras = loss_of(model, micro)
            balances.divide_by(micro_valid)
            micro_loss.backward()
            loss_sum += micro_loss.detach()
            n_valid += int(micro_valid)
            for name, value in micro_extras.items():
                extras[name] = extras.get(name, torch.zeros((), device=device)) + value.detach()
        names = sorted(extras)
        held = batch[0].numel() if n_valid else 0  # rows without a loss only keep a rank in step with the others
        scalars = [loss_sum, *divmod(n_valid, COUNT), *divmod(held, COUNT)]
        scalars += [flops(batch, n_valid) / 1e9 if held else 0.0, float(stop), *(extras[name] for name in names)]
        balances.take(gradients.loads)
        reduced = gradients.reduce(scalars, world_size)
        valid, tokens = (int(reduced[i] * COUNT + reduced[i + 1]) for i in (1, 3))

        lr = learning_rate(config, state.step)
        count = valid or math.nan  # of no tokens there is no mean: a loss of 0 would be the best of all
        loss = reduced[0] / count
        norm = gradients.scale(1 / max(1, valid), config.grad_clip)
        if norm == norm and norm != float("inf"):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr * group["lr_scale"]
                optimizer.step()
            balances.nudge(gradients.loads)
        else:
            state.skipped += 1
        state.step += 1
        state.tokens += tokens
        seconds = time.perf_counter() - begin
        values = {name: value / count for name, value in zip(names, reduced[7:], strict=True)}
        values |= balances.report(gradients.loads, max(1, valid))
        mfu = reduced[5] * 1e9 / seconds / peak
        report = StepReport(state.step, loss, lr, norm, tokens, tokens / seconds, mfu, seconds, state.skipped, values)
        stopped = reduced[6] > 0
        stop = bool(on_step(report)) if on_step is not None else False
        stopped = (stopped or (stop and world_size == 1)) and state.step < config.steps
        due = config.checkpoint_every and state.step % config.checkpoint_every == 0
        if save is not None and (due or stopped or state.step == config.steps) and saved != state.step:
            save(state.step, write)
            saved = state.step
    gradients.release()
    model.eval()
    total = time.perf_counter() - began
    return TrainResult(state.step, stopped, loss, state.tokens, state.skipped, total, reason)


@torch.no_grad()
def as_trained(
    function: Callable[[Any], Tensor], batch: Any, config: TrainConfig, device: torch.device | str
) -> Tensor:
    """`function(micro-batch)`, rows first, over a batch as a step of training computes it; on the CPU, no gradient.

    The same dtype and the same rows at once: what it gives of a model equals what the step's loss will see of that
    model, so that the ratio of a policy to itself is 1.
    """
    dtype, _ = choose(config.precision, device)
    parts = []
    for micro in micro_batches(_to(batch, torch.device(device)), config, dtype):
        with torch.autocast(torch.device(device).type, dtype) if dtype != torch.float32 else nullcontext():
            parts.append(function(micro).cpu())
    return torch.cat(parts)


def _to(batch: Any, device: torch.device) -> Any:
    parts = (torch.as_tensor(part) for part in batch)
    integers = (torch.int32, torch.int16, torch.uint16, torch.uint32, torch.uint8)
    return type(batch)(*(part.to(device, torch.int64 if part.dtype in integers else part.dtype) for part in parts))


def micro_batches(batch: Any, config: TrainConfig, dtype: torch.dtype) -> list[Any]:
    """Slices of a worker's rows that go through the model, which computes in `dtype`, one after the other."""
    rows = batch[0].shape[0]
    if not rows:
        raise ValueError("a batch without rows: a rank that has none gives a row without a loss")
    size = config.rows_at_once(rows, batch[0][0].numel(), batch[0].device.type, dtype.itemsize)
    return [type(batch)(*(part[i : i + size] for part in batch)) for i in range(0, rows, size)]
