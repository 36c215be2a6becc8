"""`--plan`: what would run and why, what is there already, and what it would cost here. Starts and changes nothing.

A stage that can tell its cost is asked (cluster/cost.py); any other takes what it took the last time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.text import Text

from cluster.cost import SAMPLING, STARTING, UTILISATION, Cost, Machine, Work
from cluster.quantities import count, duration, size
from flows.closing import plain_table, put
from flows.terminal import Terminal

if TYPE_CHECKING:
    from cluster.stage import Step
    from cluster.store.artifact import Artifacts, Manifest
    from flows.recipe import Recipe

MAX_REASONS = 4


@dataclass
class Planned:
    """One step: whether it is there, and if not, why it runs and how long it took the last time."""

    name: str
    cached: bool
    reasons: list[str] = field(default_factory=list)
    last_seconds: float | None = None
    bytes: int = 0
    gist: str = ""  # what it would do
    made_in: str | None = None  # the dtype that a machine chose for it


def look(steps: Sequence[Step], artifacts: Artifacts) -> list[Planned]:
    """Each step's state, by manifests and sizes; nothing is set aside, as a run would do."""
    from cluster.stage import explain, fingerprint, previous, unread
    from cluster.store.folder import missing
    from cluster.train.precision import made_in

    planned = []
    for step in steps:
        manifest = artifacts.manifest(step.stage.kind, fingerprint(step))
        before: Manifest | None = None
        if manifest is not None:
            problem = missing(artifacts.store, manifest.prefix, manifest.files) or unread(step, manifest)
            if not problem and holds(step, manifest, artifacts):
                dtype = made_in(manifest.config, manifest.summary)
                planned.append(Planned(step.name, True, [], manifest.wall_seconds, manifest.size, made_in=dtype))
                continue
            reasons = [f"{manifest.key} is damaged: {problem}" if problem else "its effect is no longer there"]
            before = manifest
        else:
            before = previous(step, artifacts)
            reasons = why(explain(step, before)) if before else ["never made in this store"]
        gist = step.stage.gist(step.config)
        planned.append(Planned(step.name, False, reasons, before.wall_seconds if before else None, gist=gist))
    return planned


def why(reasons: Sequence[str]) -> list[str]:
    """The reasons for a person: what changed in the step itself first, inputs by name alone."""
    inputs = [r.removeprefix("input ").partition(":")[0] for r in reasons if r.startswith("input ")]
    own = [r for r in reasons if not r.startswith("input ")]
    return own + ([f"its {' and '.join(inputs)} would be new"] if inputs else [])


def holds(step: Step, manifest: Manifest, artifacts: Artifacts) -> bool:
    from cluster.store.artifact import Artifact

    check = step.stage.still_valid
    return check is None or check(Artifact(artifacts.store.url, manifest), step.config)


def show(recipe: Recipe, steps: Sequence[Step], artifacts: Artifacts, console: Terminal) -> None:
    planned = look(steps, artifacts)
    to_run = [p.name for p in planned if not p.cached]
    costs = _costs(recipe, [s for s in steps if s.name in to_run], console) if to_run else {}
    table = plain_table(f"{recipe.name}: {len(to_run)} of {len(planned)} stages would run")
    for name in ("stage", "", "time", "what", "why"):
        table.add_column(name, justify="right" if name == "time" else "left", overflow="fold")
    total, unknown, starting = 0.0, False, STARTING if recipe.cluster.workers != 0 else 0.0
    for step in planned:
        if step.cached:
            table.add_row(step.name, "cached", "", size(step.bytes), "", style="dim")
            continue
        cost = costs.get(step.name)
        seconds = cost.seconds + starting if cost else step.last_seconds
        total, unknown = total + (seconds or 0.0), unknown or seconds is None
        about = "" if seconds is None else f"~{duration(seconds)}"
        more = len(step.reasons) - MAX_REASONS
        why = "; ".join(step.reasons[:MAX_REASONS]) + (f"; {more} more" if more > 0 else "")
        table.add_row(step.name, "runs", about, step.gist, why)
    put(table, console)
    for line in (*begins(recipe), *other_machines(recipe, planned)):
        console.print(line)
    if to_run:
        beside = ", and stages that never ran in this store" if unknown else ""
        console.print(f"About {duration(total)} of work{beside}, and up to 20 s to start.")
    else:
        console.print("Nothing would run.")


def begins(recipe: Recipe) -> list[str]:
    """Which model the recipe's `base` means now, where its name doesn't say so."""
    found = recipe._begins
    return [f"Base: {recipe.base} is {found.name} now."] if found and found.name != recipe.base else []


def other_machines(recipe: Recipe, planned: Sequence[Planned]) -> list[str]:
    """Models that are there, and that a machine of another kind computed in another dtype than this one would take."""
    from cluster.train.precision import automatic

    made = {dtype: [p.name for p in planned if p.made_in == dtype] for dtype in ("bf16", "fp32")}
    if not any(made.values()) or recipe.cluster.address or os.environ.get("RAY_ADDRESS"):
        return []  # on a cluster the workers' machine decides, which isn't this one
    here = automatic(recipe.cluster.use_gpu)
    return [
        f'{" and ".join(names)}: made in {dtype}, by a machine of another kind: here precision = "auto" is {here}. '
        f'The cached one is used; to have it in {here}, write precision = "{here}" in its [train].'
        for dtype, names in made.items()
        if names and dtype != here
    ]


def _costs(recipe: Recipe, steps: Sequence[Step], console: Terminal) -> dict[str, Cost]:
    """What the steps would cost that can tell it, shown as a table."""
    machine = _machine(recipe, console)
    costs = [step.stage.cost(step, machine) for step in steps if step.stage.cost]
    if costs:
        table = plain_table("Training")
        for name in ("stage", "tokens", "FLOPs", "time here", "memory per worker", "checkpointing"):
            table.add_column(name, justify="left" if name in ("stage", "checkpointing") else "right")
        for cost in costs:
            table.add_row(cost.name, *_figures(cost), size(cost.memory), cost.checkpointing)
            for work in cost.works if len(cost.works) > 1 else ():
                table.add_row(f"  {work.what}", *_figures(work), "", "", style="dim")
        put(table, console)
    return {cost.name: cost for cost in costs}


def _machine(recipe: Recipe, console: Terminal) -> Machine:
    """This machine, measured; shown with the recipe's model."""
    import torch

    from model.count import flops_per_token, parameters
    from model.precision import choose, matmul_peak

    config = recipe.network
    counts, length = parameters(config), min(recipe.training.seq_len, config.max_seq_len)
    active = f", {count(counts.active)} active for a token" if counts.active < counts.total else ""
    console.print(
        Text(
            f"Model: {count(counts.total)} parameters ({count(counts.embedding)} of them embeddings{active}), "
            f"{config.n_layers} layers of width {config.d_model}, vocabulary {config.vocab_size:,}, "
            f"context {config.max_seq_len:,}; FLOPs per token of rows of {length:,}: "
            f"{flops_per_token(config, length, train=False):.2e} forward, "
            f"{flops_per_token(config, length):.2e} in training"
        )
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, why = choose(recipe.training.precision, device)
    rate = matmul_peak(device, dtype)
    console.print(
        Text(
            f"Here: {rate / 1e9:,.0f} GFLOP/s of matrix products on {device} in {str(dtype).removeprefix('torch.')} "
            f"({why}); training is estimated at {UTILISATION[device]:.0%} of that, sampling at {SAMPLING[device]:.0%}"
        )
    )
    return Machine(rate, device, dtype)


def _figures(cost: Cost | Work) -> tuple[str, str, str]:
    return count(cost.tokens), f"{cost.flops:.2e}", f"~{duration(cost.seconds)}"
