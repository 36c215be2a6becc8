"""`--plan`: what would run and why, what is there already, and what it would cost here. Starts and changes
nothing.

Sizes and FLOPs are counted on torch's meta device. The time of a training is its FLOPs over this machine's
measured matmul rate, times the share of it that training reaches; of any other stage, what it took the last
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from flows.closing import plain_table, put
from flows.show import count, duration, size

if TYPE_CHECKING:
    from cluster.artifact import Artifacts, Manifest
    from cluster.stage import Step
    from flows.recipe import Recipe

# Share of the matmul rate that a training step reaches: measured on 2 cores at widths 128 to 256 (0.40 to 0.58), and
# the usual 0.35 to 0.45 of well-tuned training on GPUs.
UTILISATION = {"cpu": 0.45, "cuda": 0.40}
MAX_REASONS = 4


@dataclass
class Planned:
    """One step: whether it is there, and if not, why it runs and how long it took the last time."""

    name: str
    cached: bool
    reasons: list[str] = field(default_factory=list)
    last_seconds: float | None = None
    bytes: int = 0


@dataclass
class Training:
    """What one training costs."""

    name: str
    tokens: int
    flops: float
    memory: int
    seconds: float


def look(steps: Sequence[Step], artifacts: Artifacts) -> list[Planned]:
    """Each step's state, by manifests and sizes; nothing is set aside, as a run would do."""
    from cluster.stage import explain, fingerprint, previous
    from cluster.store.folder import missing

    planned = []
    for step in steps:
        manifest = artifacts.manifest(step.stage.kind, fingerprint(step))
        before: Manifest | None = None
        if manifest is not None:
            problem = missing(artifacts.store, manifest.prefix, manifest.files)
            if problem is None and holds(step, manifest, artifacts):
                planned.append(Planned(step.name, True, [], manifest.wall_seconds, manifest.size))
                continue
            reasons = [f"damaged: {problem}" if problem else "its effect is no longer there"]
            before = manifest
        else:
            before = previous(step, artifacts)
            reasons = why(explain(step, before)) if before else ["never made in this store"]
        planned.append(Planned(step.name, False, reasons, before.wall_seconds if before else None))
    return planned


def why(reasons: Sequence[str]) -> list[str]:
    """The reasons for a person: what changed in the step itself first, inputs by name alone."""
    inputs = [r.removeprefix("input ").partition(":")[0] for r in reasons if r.startswith("input ")]
    own = [r for r in reasons if not r.startswith("input ")]
    return own + ([f"its {' and '.join(inputs)} would be new"] if inputs else [])


def holds(step: Step, manifest: Manifest, artifacts: Artifacts) -> bool:
    from cluster.artifact import Artifact

    check = step.stage.still_valid
    return check is None or check(Artifact(artifacts.store.url, manifest), step.config)


def trainings(recipe: Recipe, names: Sequence[str], rate: float, device: str) -> list[Training]:
    """Costs of the recipe's trainings among `names`, at `rate` FLOP/s of matrix products.

    RLHF also samples its answers: one forward per token of them, one row at a time per prompt, counted like
    training.
    """
    from model.count import flops_per_token, memory

    config = recipe.model.with_vocabulary(recipe.tokenizer.vocab_size)
    stages: dict[str, Any] = {"pretrain": recipe.train}
    if recipe.instruct:
        stages["instruct"] = recipe.instruct.train
    if recipe.rlhf:
        stages["rlhf"] = recipe.rlhf.train
    found = []
    for name, train in stages.items():
        if name not in names:
            continue
        tokens = train.steps * train.batch_size * train.seq_len
        flops = flops_per_token(config, train.seq_len) * tokens
        micro = train.micro_batch_size or max(1, min(train.batch_size, 4096 // train.seq_len))
        needed = memory(
            config, micro, train.seq_len, optimizer=train.optimizer, checkpointing=train.activation_checkpointing
        ).total
        found.append(Training(name, tokens, flops, needed, flops / (rate * UTILISATION[device])))
    return found


def show(recipe: Recipe, steps: Sequence[Step], artifacts: Artifacts, console: Console) -> None:
    planned = look(steps, artifacts)
    to_run = [p.name for p in planned if not p.cached]
    costs = _costs(recipe, [s.name for s in steps], console)
    table = plain_table(f"{recipe.name}: {len(to_run)} of {len(planned)} stages would run")
    for name in ("stage", "", "time", "why"):
        table.add_column(name, justify="right" if name == "time" else "left", overflow="fold")
    total, unknown = 0.0, False
    for step in planned:
        if step.cached:
            table.add_row(step.name, "cached", "", size(step.bytes), style="dim")
            continue
        cost = costs.get(step.name)
        seconds = cost.seconds if cost else step.last_seconds
        total, unknown = total + (seconds or 0.0), unknown or seconds is None
        about = "" if seconds is None else f"~{duration(seconds)}"
        more = len(step.reasons) - MAX_REASONS
        why = "; ".join(step.reasons[:MAX_REASONS]) + (f"; {more} more" if more > 0 else "")
        table.add_row(step.name, "runs", about, escape(why))
    put(table, console)
    if to_run:
        beside = ", and stages that never ran in this store" if unknown else ""
        console.print(f"About {duration(total)} of work{beside}, and up to 20 s to start.", highlight=False)
    else:
        console.print("Nothing would run.", highlight=False)


def _costs(recipe: Recipe, names: Sequence[str], console: Console) -> dict[str, Training]:
    import torch

    from model.count import parameters
    from model.precision import choose, matmul_peak

    config = recipe.model.with_vocabulary(recipe.tokenizer.vocab_size)
    counts = parameters(config)
    console.print(
        Text(
            f"Model: {count(counts.total)} parameters ({count(counts.embedding)} of them embeddings), "
            f"{config.n_layers} layers of width {config.d_model}, vocabulary {config.vocab_size:,}, "
            f"context {config.max_seq_len:,}"
        )
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, why = choose(recipe.train.precision, device)
    rate = matmul_peak(device, dtype)
    console.print(
        Text(
            f"Here: {rate / 1e9:,.0f} GFLOP/s of matrix products on {device} in {str(dtype).removeprefix('torch.')} "
            f"({why}); training is reckoned at {UTILISATION[device]:.0%} of that"
        )
    )
    costs = trainings(recipe, names, rate, device)
    if costs:
        table = plain_table("Training")
        for name in ("stage", "tokens", "FLOPs", "memory per worker", "time here"):
            table.add_column(name, justify="left" if name == "stage" else "right")
        for cost in costs:
            table.add_row(
                cost.name, count(cost.tokens), f"{cost.flops:.2e}", size(cost.memory), f"~{duration(cost.seconds)}"
            )
        put(table, console)
    return {cost.name: cost for cost in costs}
