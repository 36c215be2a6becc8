"""What a run says when it ends: every stage, the quality before and after, samples, the version, what to type
next."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flows.show import at_most, duration, facts, size

if TYPE_CHECKING:
    from cluster.store.artifact import Artifact
    from flows.run import Run

SAMPLES = 5


def show(run: Run, console: Console) -> None:
    """The closing tables of a run that went through."""
    console.print()
    put(stages_table(run), console)
    put(quality_table(run), console)
    for line in alignment_lines(run):
        console.print(line, highlight=False)
    put(samples_table(run), console)
    for line in release_lines(run):
        console.print(line, highlight=False)
    where(run, console)
    console.print("\nNext:")
    for command in next_commands(run):
        console.print(Text(f"  {command}", style="bold"), soft_wrap=True)


def artifact_of(run: Run, step: str) -> Artifact | None:
    outcome = run.outcomes.get(step)
    return outcome.artifact if outcome else None


def plain_table(title: str) -> Table:
    return Table(title=title, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def put(table: Table, console: Console) -> None:
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
        table.add_row(name, shown, size(outcome.artifact.manifest.size), escape(facts(outcome.artifact)), style=style)
    return table


def quality_table(run: Run) -> Table:
    """Bits per byte, lower is better: of all held-out text and of each source, beside the baselines."""
    before, after = artifact_of(run, "evaluate-base"), artifact_of(run, "evaluate")
    table = plain_table("Held out, bits per byte (lower is better)")
    scored: Any = before or after
    if scored is None:
        return table
    columns = [("pretrained", before, "bpb"), ("aligned", after, "bpb")]
    columns += [("unigram", scored, "unigram_bpb"), ("gzip -9", scored, "gzip_bpb")]
    columns = [c for c in columns if c[1] is not None and c[2] in c[1].summary]
    table.add_column("text")
    for title, _, _ in columns:
        table.add_column(title, justify="right")
    sources = sorted(k.partition("/")[2] for k in scored.summary if k.startswith("bpb/"))
    for source in ["", *sources]:
        cells = []
        for _, artifact, metric in columns:
            value = artifact.summary.get(f"{metric}/{source}" if source else metric) if artifact else None
            bound = at_most(artifact.summary) if artifact and metric == "bpb" else ""
            cells.append(f"{bound}{value:.3f}" if isinstance(value, int | float) else "")
        if any(cells):
            table.add_row(source or "all", *cells)
    bits = ("bpb", "unigram_bpb", "gzip_bpb")
    other = sorted(
        k
        for k in scored.summary
        if k.partition("/")[0] not in bits and "bpb_bound_error/" not in k and not k.endswith("/items")
    )
    for metric in other:
        values = [a.summary.get(metric) if a else None for a in (before, after)]
        shown = [f"{v:.3f}" for v in values if isinstance(v, int | float)]
        if shown:
            table.add_row(metric, *shown)
    return table


def alignment_lines(run: Run) -> list[Text]:
    """What reinforcement learning changed on tasks it never trained on."""
    artifact = artifact_of(run, "rlhf")
    lines = []
    for key, before in (artifact.summary if artifact else {}).items():
        after = artifact.summary.get(f"{key.removesuffix('_before')}_after") if artifact else None
        if key.endswith("_before") and isinstance(before, int | float) and isinstance(after, int | float):
            name = key.removesuffix("_before").replace("_", " ")
            items = artifact.summary.get("heldout_items") if artifact else None
            on = f" on {items} held-out prompts" if items else " on held-out prompts"
            lines.append(Text(f"rlhf: {name} {before:.3f} → {after:.3f} ({after - before:+.3f}){on}"))
    return lines


def samples_table(run: Run) -> Table:
    """Some generations of the last model that was evaluated."""
    table = plain_table("Samples")
    artifact = artifact_of(run, "evaluate") or artifact_of(run, "evaluate-base")
    if artifact is None or "samples.json" not in artifact.manifest.files:
        return table
    table.add_column("prompt", overflow="fold", ratio=1)
    table.add_column("completion", overflow="fold", ratio=2)
    for sample in json.loads(artifact.read("samples.json"))[:SAMPLES]:
        cells = (str(sample.get("prompt", "")), str(sample.get("completion", "")))
        table.add_row(*(Text(" ".join(c.split())[:300]) for c in cells))
    return table


def release_lines(run: Run) -> list[Text]:
    artifact = artifact_of(run, "release")
    if artifact is None:
        return []
    s = artifact.summary
    gate = s.get("gate") or {}
    aliases = " ".join(f"@{a}" for a in s.get("aliases") or []) or "no alias"
    verdict = "passed" if gate.get("passed") else "failed"
    return [
        Text(f"Registered: {s.get('name')} version {s.get('version')} ({aliases})", style="bold"),
        Text(f"Gate {verdict}: {gate.get('reason', '')}", style="" if gate.get("passed") else "yellow"),
    ]


def where(run: Run, console: Console) -> None:
    """Where to look further."""
    place = run.tracker.place
    tracked = run.runs.get("line")
    url = run.tracker.url(tracked) if tracked else None
    console.print(Text(f"Store:  {run.artifacts.store.url}"), soft_wrap=True)
    console.print(Text(f"MLflow: {url or place.uri}"), soft_wrap=True)
    if run.log:
        console.print(Text(f"Log:    {run.log}"), soft_wrap=True)


def next_commands(run: Run) -> list[str]:
    """The three commands a person would type next."""
    release = artifact_of(run, "release")
    model = next((a for a in map(run_artifact(run), ("rlhf", "instruct", "extend", "pretrain")) if a), None)
    commands = []
    if release is not None:
        uri = release.summary.get("uri", "")
        commands = [f"tokenmill chat {uri}", f'tokenmill generate {uri} "The function returns"']
        commands.append(f"tokenmill models {release.summary.get('name', '')}")
    elif model is not None and "://" not in run.artifacts.store.url:
        folder = shlex.quote(relative(model.path(verify=False)))
        commands = [f'tokenmill generate {folder} "The function returns"', f"tokenmill chat {folder}"]
        commands.append(command(run, until=False))
    else:
        commands = [command(run, until=False), f"{command(run, until=False)} --plan"]
    if release is not None and not run.tracker.place.is_server:
        commands[2] = f"{commands[2]}      # or: {run.tracker.place.command}"
    return commands


def command(run: Run, until: bool = True) -> str:
    """The command that made this run; without `--until`, the one that goes on to the end."""
    words = ["tokenmill", "run", run.source]
    for text in run.overrides:
        words += ["--set", text]
    if until and run.until:
        words += ["--until", run.until]
    return " ".join(shlex.quote(w) for w in words)


def run_artifact(run: Run) -> Any:
    return lambda name: artifact_of(run, name)


def relative(path: Path) -> str:
    try:
        return f"./{path.relative_to(Path.cwd())}"
    except ValueError:
        return str(path)
