"""What a run says when it ends: every stage, the quality before and after, samples, the version, what to type next."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from cluster.evaluate.summary import at_most
from cluster.quantities import duration, size
from flows.commands import next_commands
from flows.terminal import Terminal

if TYPE_CHECKING:
    from cluster.evaluate.summary import EvaluationSummary
    from cluster.store.artifact import Artifact
    from flows.run import Run

SAMPLES = 5


def show(run: Run, console: Terminal) -> None:
    """The closing tables of a run that went through."""
    console.print()
    put(stages_table(run), console)
    put(quality_table(run), console)
    put(samples_table(run), console)
    for line in dict.fromkeys(line for outcome in run.outcomes.values() for line in outcome.summary.closing()):
        console.print(Text(line), soft_wrap=True)
    where(run, console)
    commands = next_commands(run)
    if commands:
        console.print("\nNext:")
    for command in commands:
        console.print(Text(f"  {command}", style="bold"), soft_wrap=True)


def artifact_of(run: Run, step: str) -> Artifact | None:
    outcome = run.outcomes.get(step)
    return outcome.artifact if outcome else None


def plain_table(title: str) -> Table:
    return Table(title=title, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def put(table: Table, console: Terminal) -> None:
    """The table under its title, which may be wider than it; nothing for an empty one."""
    if table.row_count:
        title, table.title = table.title, None
        console.print(Text(str(title), style="bold"))
        console.print(table)
        console.print()


def stages_table(run: Run) -> Table:
    table = plain_table(f"{run.name}: {len(run.outcomes)} stages in {duration(time.monotonic() - run.begun)}")
    for name in ("stage", "time", "size", "result"):
        table.add_column(name, justify="right" if name in ("time", "size") else "left")
    for name, outcome in run.outcomes.items():
        shown = "cached" if outcome.cached else duration(outcome.seconds)
        style = "dim" if outcome.cached else ""
        table.add_row(name, shown, size(outcome.artifact.manifest.size), outcome.summary.words(), style=style)
    return table


def quality_table(run: Run) -> Table:
    """Bits per byte, lower is better: of all held-out text and of each source, beside the baselines."""
    table = plain_table("Held out, bits per byte (lower is better)")
    before, after = evaluation_of(run, "evaluate-base"), evaluation_of(run, "evaluate")
    quantized = evaluation_of(run, "evaluate-quantized")
    scored = before or after or quantized
    if scored is None:
        return table
    asked = [("base" if "base" in run.outcomes else "pretrained", before, "bpb"), ("aligned", after, "bpb")]
    asked += [("quantized", quantized, "bpb")]
    asked += [("unigram", scored, "unigram_bpb"), ("gzip -9", scored, "gzip_bpb")]
    columns = [(title, of.metrics, metric) for title, of, metric in asked if of is not None and metric in of.metrics]
    table.add_column("text")
    for title, _, _ in columns:
        table.add_column(title, justify="right")
    for source in ["", *scored.sources()]:
        cells = []
        for _, metrics, metric in columns:
            value = metrics.get(f"{metric}/{source}" if source else metric)
            bound = at_most(metrics) if metric == "bpb" else ""
            cells.append(f"{bound}{value:.3f}" if value is not None else "")
        if any(cells):
            table.add_row(source or "all", *cells)
    for metric in scored.other():
        values = [one.metrics.get(metric) for one in (before, after, quantized) if one is not None]
        shown = [f"{v:.3f}" for v in values if v is not None]
        if shown:
            table.add_row(metric, *shown)
    return table


def evaluation_of(run: Run, step: str) -> EvaluationSummary | None:
    from cluster.evaluate.summary import EvaluationSummary

    summary = run.outcomes[step].summary if step in run.outcomes else None
    return summary if isinstance(summary, EvaluationSummary) else None


def samples_table(run: Run) -> Table:
    """Some generations of the last model that was evaluated."""
    from cluster.evaluate.summary import samples

    table = plain_table("Samples")
    evaluations = (artifact_of(run, name) for name in ("evaluate-quantized", "evaluate", "evaluate-base"))
    artifact = next((one for one in evaluations if one), None)
    found = samples(artifact)[:SAMPLES] if artifact else []
    if not found:
        return table
    table.add_column("prompt", overflow="fold", ratio=1)
    table.add_column("completion", overflow="fold", ratio=2)
    for sample in found:
        cells = (str(sample.get("prompt", "")), str(sample.get("completion", "")))
        table.add_row(*(Text(" ".join(c.split())[:300]) for c in cells))
    return table


def where(run: Run, console: Terminal) -> None:
    """Where to look further."""
    place = run.tracker.place
    tracked = run.runs.get("line")
    url = run.tracker.url(tracked) if tracked else None
    console.print(Text(f"Store:  {run.artifacts.store.url}"), soft_wrap=True)
    console.print(Text(f"MLflow: {url or place.uri}"), soft_wrap=True)
    if not place.is_server:
        console.print(Text(f"        {place.command}"), soft_wrap=True)
    if run.log:
        console.print(Text(f"Log:    {run.log}"), soft_wrap=True)
