"""What a person reads in Prefect's UI beside the states.

Each stage's report, curve and metrics, the progress of the stage at work, the way to the MLflow run: one key for each,
so that the UI keeps its history.

What a stage shows is its summary's to say (cluster/report.py has the blocks). Prefect renders descriptions and tables'
cells as Markdown too, so all of it is escaped. None of it is needed by the line: it is sent from the mirror's thread,
and what can't be sent is a warning in the log.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cluster.outside import in_markdown
from cluster.quantities import duration, size
from cluster.report import Block, Curve, Numbers, Table, Text
from cluster.tracking.figures import svg_data_url

if TYPE_CHECKING:
    from flows.run import Run

MAX_READ = 64 << 20  # of an events.jsonl, for its curve
_log = logging.getLogger(__name__)


def never_raises(function: Callable[..., None]) -> Callable[..., bool]:
    """The function, returning whether it went through instead of raising."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> bool:
        try:
            function(*args, **kwargs)
        except Exception:
            _log.warning("%s: not sent to Prefect", function.__name__, exc_info=True)
            return False
        return True

    return wrapped


def key_of(run: Run, step: str, what: str) -> str:
    """Prefect allows lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{run.name}-{step}-{what}".lower()).strip("-")


class progress:
    """A stage's progress as an artifact: made when it is first shown, then updated."""

    def __init__(self, run: Run, step: str):
        self.run, self.step = run, step
        self.id: Any = None

    @never_raises
    def show(self, done: float, total: float, text: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if not total:
            return
        percent = min(100.0 * done / total, 100.0)
        if self.id is None:
            self.id = create_progress_artifact(percent, key_of(self.run, self.step, "progress"), in_markdown(text))
        else:
            update_progress_artifact(self.id, percent, in_markdown(text))

    @never_raises
    def close(self, whole: bool) -> None:
        """The stage has ended, and is `whole` or not."""
        from prefect.artifacts import update_progress_artifact

        if self.id is not None and whole:
            update_progress_artifact(self.id, 100.0)


@never_raises
def report(run: Run, step: str) -> None:
    """What one finished step shows: its report as a page, its curves as images, its metrics as a table."""
    from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

    outcome = run.outcomes[step]
    blocks, words = outcome.summary.report(outcome.artifact), in_markdown(outcome.summary.words())
    page = [block for block in blocks if not isinstance(block, Numbers)]
    if page:
        create_markdown_artifact(markdown(step, page), key_of(run, step, "report"), words)
    for block in blocks:
        if isinstance(block, Curve):
            url = svg_data_url(spec_of(step, block))
            shown = in_markdown(f"{step}: {block.title} by {block.x_label}")
            create_image_artifact(url, key_of(run, step, "curve"), shown)
        elif isinstance(block, Numbers):
            rows = [{"metric": in_markdown(k), "value": round(v, 5)} for k, v in sorted(block.values.items())]
            create_table_artifact(rows, key_of(run, step, "metrics"), words)


@never_raises
def closing(run: Run) -> None:
    """The run as a whole: where MLflow has it, and a table of the stages."""
    from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

    tracked = run.runs.get("line")
    run_id = tracked.wait_run_id(3) if tracked else ""
    url = run.tracker.url(run_id) if run_id else None
    key = key_of(run, "", "mlflow-run")
    if url:
        create_link_artifact(url, "the run in MLflow", key)
    elif run_id:
        create_markdown_artifact(
            f"MLflow run {in_markdown(run_id)} in {in_markdown(run.tracker.place.uri)}\n\n"
            f"See it: {in_markdown(run.tracker.place.command)}",
            key,
        )
    rows = [
        {
            "stage": in_markdown(name),
            "state": "cached" if outcome.cached else "made",
            "time": "" if outcome.cached else duration(outcome.seconds),
            "size": size(outcome.artifact.manifest.size),
            "artifact": in_markdown(outcome.artifact.manifest.key),
            "result": in_markdown(outcome.summary.words()),
        }
        for name, outcome in run.outcomes.items()
    ]
    create_table_artifact(rows, key_of(run, "", "stages"), "Every stage of the run")


# --- the texts --------------------------------------------------------------------------------------------


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """A page of text, tables and curves in characters. What is shown is text: nothing in it is Markdown or HTML."""
    parts = [f"# {in_markdown(title)}"]
    for block in blocks:
        if isinstance(block, Text):
            parts += [in_markdown(line) for line in block.body.split("\n") if line.strip()]
        elif isinstance(block, Table):
            parts += [f"## {in_markdown(block.title)}", markdown_table(block.columns, block.rows)]
        elif isinstance(block, Curve):
            rows = [[f"{x:g}", f"{y:.4f}"] for x, y in thin(block.points, 10)]
            parts += [f"## {in_markdown(block.title)}", f"```\n{text_plot(block.points)}\n```"]
            parts.append(markdown_table([block.x_label, block.y_label], rows))
    return "\n\n".join(parts)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [[in_markdown(c) for c in row] for row in [columns, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])


def spec_of(step: str, curve: Curve) -> dict[str, Any]:
    """A curve as a figure's spec, see cluster/tracking/figures.py."""
    xs, ys = [x for x, _ in curve.points], [y for _, y in curve.points]
    title = f"{step}: {curve.title}"
    series = [{"name": curve.title, "x": xs, "y": ys}]
    return {"title": title, "x_label": curve.x_label, "y_label": curve.y_label, "kind": "line", "series": series}


def thin(points: Sequence[tuple[float, float]], n: int) -> list[tuple[float, float]]:
    """At most n points, each the mean of its neighbours."""
    width = max(1, -(-len(points) // n))
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [(g[-1][0], sum(p[1] for p in g) / len(g)) for g in groups]


def text_plot(points: Sequence[tuple[float, float]], width: int = 64, height: int = 12) -> str:
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
    lines.append(" " * 10 + f"{points[0][0]:g} … {points[-1][0]:g}")
    return "\n".join(line.rstrip() for line in lines)
