"""What a person reads in Prefect's UI beside the states: the data report, the loss curve, the evaluation
table, the progress of the stage at work, the way to the MLflow run. One key for each, so that the UI keeps
its history.

None of it is needed by the line: what can't be sent is a warning in the log.
"""

from __future__ import annotations

import base64
import functools
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.show import count, duration, facts, size

if TYPE_CHECKING:
    from cluster.store.artifact import Artifact
    from flows.run import Run

PROGRESS_SECONDS = 3.0
MAX_READ = 64 << 20  # of an events.jsonl, for its curve
_log = logging.getLogger(__name__)


def never_raises(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception:
            _log.warning("%s: not sent to Prefect", function.__name__, exc_info=True)

    return wrapped


def key_of(run: Run, step: str, what: str) -> str:
    """Prefect allows lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{run.name}-{step}-{what}".lower()).strip("-")


class progress:
    """The stage's progress as an artifact, updated every few seconds until `close`."""

    def __init__(self, run: Run, step: str):
        self.run, self.step = run, step
        self.id: Any = None
        self.last = time.monotonic()
        run.listeners.append(self)

    @never_raises
    def __call__(self, step: str, done: float, total: float, text: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        now = time.monotonic()
        if step != self.step or not total or now - self.last < PROGRESS_SECONDS:
            return
        self.last = now
        percent = min(100.0 * done / total, 100.0)
        if self.id is None:
            self.id = create_progress_artifact(percent, key_of(self.run, step, "progress"), text)
        else:
            update_progress_artifact(self.id, percent, text)

    @never_raises
    def close(self) -> None:
        from prefect.artifacts import update_progress_artifact

        self.run.listeners.remove(self)
        if self.id is not None and self.step in self.run.outcomes:
            update_progress_artifact(self.id, 100.0)


@never_raises
def report(run: Run, step: str) -> None:
    """What one finished step shows."""
    from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

    artifact = run.outcomes[step].artifact
    if artifact.kind in ("corpus", "documents"):
        create_markdown_artifact(data_report(artifact), key_of(run, step, "report"), facts(artifact))
    elif artifact.kind == "model":
        points = loss_curve(artifact)
        if points:
            create_markdown_artifact(curve_report(step, points), key_of(run, step, "loss"), facts(artifact))
            create_image_artifact(svg_url(step, points), key_of(run, step, "curve"), f"{step}: loss by step")
    elif artifact.kind == "evaluation":
        rows = [{"metric": k, "value": round(v, 5)} for k, v in sorted(numbers(artifact.summary).items())]
        create_table_artifact(rows, key_of(run, step, "metrics"), facts(artifact))
    elif artifact.kind == "release":
        create_markdown_artifact(release_report(artifact), key_of(run, step, "gate"), facts(artifact))


@never_raises
def closing(run: Run) -> None:
    """The run as a whole: where MLflow has it, and a table of the stages."""
    from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

    tracked = run.runs.get("line")
    run_id = tracked.wait_run_id(10) if tracked else ""
    url = run.tracker.url(run_id) if run_id else None
    key = key_of(run, "", "mlflow-run")
    if url:
        create_link_artifact(url, "the run in MLflow", key)
    elif run_id:
        create_markdown_artifact(
            f"MLflow run `{run_id}` in `{run.tracker.place.uri}`\n\nSee it: `{run.tracker.place.command}`",
            key,
        )
    rows = [
        {
            "stage": name,
            "state": "cached" if outcome.cached else "made",
            "time": "" if outcome.cached else duration(outcome.seconds),
            "size": size(outcome.artifact.manifest.size),
            "artifact": outcome.artifact.manifest.key,
            "result": facts(outcome.artifact),
        }
        for name, outcome in run.outcomes.items()
    ]
    create_table_artifact(rows, key_of(run, "", "stages"), "Every stage of the run")


# --- the texts --------------------------------------------------------------------------------------------


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = float(value)
    return found


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [[str(c).replace("|", "\\|").replace("\n", " ") for c in row] for row in [columns, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])


def data_report(artifact: Artifact) -> str:
    """Documents that came in, and those that did not, by reason."""
    s = artifact.summary
    parts = [f"# {artifact.manifest.name}", facts(artifact)]
    sources = s.get("sources") or {}
    if sources and all(isinstance(v, Mapping) for v in sources.values()):
        columns = list(dict.fromkeys(k for v in sources.values() for k in numbers(v)))
        table = [[name, *(f"{numbers(v).get(c, 0):,.0f}" for c in columns)] for name, v in sorted(sources.items())]
        parts += ["## By source", markdown_table(["source", *columns], table)]
    for what in ("quarantined", "removed"):
        reasons = numbers(s.get(what) or {})
        if reasons:
            rows = [[r, f"{n:,.0f}"] for r, n in sorted(reasons.items(), key=lambda item: -item[1])]
            parts += [f"## {what.capitalize()}, by reason", markdown_table(["reason", "documents"], rows)]
        elif what in s:
            parts += [f"Nothing was {what}."]
    return "\n\n".join(parts)


def release_report(artifact: Artifact) -> str:
    s = artifact.summary
    gate = s.get("gate") or {}
    parts = [f"# {s.get('name', '')} version {s.get('version', '')}"]
    aliases = ", ".join(f"@{a}" for a in s.get("aliases") or []) or "none"
    parts += [
        f"Aliases: {aliases}",
        f"Gate **{'passed' if gate.get('passed') else 'failed'}**: {gate.get('reason', '')}",
    ]
    rows = gate.get("metrics") or []
    if rows:
        columns = list(rows[0])
        parts.append(markdown_table(columns, [[r.get(c, "") for c in columns] for r in rows]))
    return "\n\n".join(parts)


def loss_curve(artifact: Artifact) -> list[tuple[int, float]]:
    """(step, loss) of a model's training, from its events.jsonl."""
    entry = artifact.manifest.files.get("events.jsonl")
    if entry is None or entry.size > MAX_READ:
        return []
    points: dict[int, float] = {}
    for line in artifact.read("events.jsonl").splitlines():
        event = json.loads(line)
        if event.get("type") == "metrics" and isinstance(event["values"].get("loss"), int | float):
            points[int(event["step"])] = float(event["values"]["loss"])
    return sorted(points.items())


def thin(points: list[tuple[int, float]], n: int) -> list[tuple[int, float]]:
    """At most n points, each the mean of its neighbours."""
    width = max(1, -(-len(points) // n))
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [(g[-1][0], sum(p[1] for p in g) / len(g)) for g in groups]


def text_plot(points: list[tuple[int, float]], width: int = 64, height: int = 12) -> str:
    """A curve in characters."""
    points = thin(points, width)
    low, high = min(y for _, y in points), max(y for _, y in points)
    span = (high - low) or 1.0
    rows = [round((height - 1) * (high - y) / span) for _, y in points]
    lines = []
    for r in range(height):
        label = high - span * r / (height - 1)
        lines.append(f"{label:8.3f} │" + "".join("•" if rows[i] == r else " " for i in range(len(points))))
    lines.append(" " * 9 + "└" + "─" * len(points))
    lines.append(" " * 10 + f"step {points[0][0]} … {points[-1][0]}")
    return "\n".join(line.rstrip() for line in lines)


def curve_report(step: str, points: list[tuple[int, float]]) -> str:
    shown = thin(points, 10)
    rows = [[n, f"{y:.4f}"] for n, y in shown]
    return f"# {step}: loss\n\n```\n{text_plot(points)}\n```\n\n{markdown_table(['step', 'loss'], rows)}"


def svg_url(step: str, points: list[tuple[int, float]]) -> str:
    """The curve as an SVG in a data: URL, so that no server has to keep it."""
    points = thin(points, 300)
    low, high = min(y for _, y in points), max(y for _, y in points)
    first, last = points[0][0], points[-1][0]
    across, down = 540 / ((last - first) or 1), 250 / ((high - low) or 1)
    xy = " ".join(f"{50 + across * (x - first):.1f},{20 + down * (high - y):.1f}" for x, y in points)
    text = 'font-family="sans-serif" font-size="12" fill="#555"'
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 310">'
        '<rect width="620" height="310" fill="#fff"/>'
        f'<polyline points="{xy}" fill="none" stroke="#2563eb" stroke-width="2"/>'
        f'<text x="8" y="24" {text}>{high:.2f}</text><text x="8" y="274" {text}>{low:.2f}</text>'
        f'<text x="50" y="298" {text}>step {first}</text><text x="540" y="298" {text}>{count(last)}</text>'
        f'<text x="260" y="16" {text}>{step}: loss</text></svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
