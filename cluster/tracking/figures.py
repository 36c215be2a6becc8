"""Figures drawn from data: a stage writes what is to be seen, the tracker draws it.

    {"title", "x_label", "y_label", "kind": "line" | "bar", "series": [{"name", "x": […], "y": […]}]}
      ├─ draw           a matplotlib Figure, for MLflow
      └─ svg_data_url   text, for a page that keeps no files: the same spec gives the same text, of some 10 kB

Matplotlib's object interface, not pyplot: that one keeps global state and isn't safe in threads.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cluster.outside import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {"title": "title", "xlabel": "x_label", "ylabel": "y_label"}
SVG_POINTS = 600  # in all lines of a figure together; it is 500 pixels wide


def draw(spec: Mapping[str, Any]) -> Figure:
    """Draw a spec as above; points without a finite y are left out.

    Raises:
        ValueError: another kind than "line" or "bar", or a series whose x and y differ in length.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kind = spec.get("kind", "line")
    if kind not in ("line", "bar"):
        raise ValueError(f"Figure of kind {kind!r}; it can be 'line' or 'bar'.")
    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    series = list(spec.get("series", ()))
    labels: list[Any] = []
    for one in series:
        if len(one["x"]) != len(one["y"]):
            raise ValueError(f"Series {one.get('name')!r} has {len(one['x'])} x and {len(one['y'])} y.")
        labels += [x for x in one["x"] if x not in labels] if kind == "bar" else []
    for index, one in enumerate(series):
        points = [(x, y) for x, y in zip(one["x"], map(_number, one["y"]), strict=True) if math.isfinite(y)]
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        if kind == "line":
            axes.plot(xs, ys, label=_text(one.get("name") or ""), linewidth=1.4, marker="o" if len(xs) == 1 else None)
        else:
            width = 0.8 / len(series)
            places = [labels.index(x) + (index - (len(series) - 1) / 2) * width for x in xs]
            axes.bar(places, ys, width, label=_text(one.get("name") or ""))
    if kind == "bar":
        axes.set_xticks(range(len(labels)), [_text(x) for x in labels], rotation=30 if len(labels) > 4 else 0)
    if spec.get("y_scale") == "log":
        axes.set_yscale("log")
    axes.set(**{each: _text(spec.get(key, "")) for each, key in LABELS.items()})
    axes.grid(alpha=0.25)
    if any(one.get("name") for one in series) and (len(series) > 1 or kind == "line"):
        axes.legend(frameon=False)
    return figure


def svg(spec: Mapping[str, Any]) -> str:
    """The figure as SVG; of long lines the extremes of each stretch. Raises as `draw` does."""
    import matplotlib

    # These two belong to the process, and are the same for every figure: ids that don't change, text as text.
    matplotlib.rcParams.update({"svg.hashsalt": "tokenmill", "svg.fonttype": "none"})
    series = list(spec.get("series", ()))
    if spec.get("kind", "line") == "line":
        series = [_thin(one, SVG_POINTS // len(series)) for one in series]
    text = io.StringIO()
    nothing_of_today = {"Date": None, "Creator": None}
    draw({**spec, "series": series}).savefig(text, format="svg", metadata=nothing_of_today)
    return text.getvalue()


def svg_data_url(spec: Mapping[str, Any]) -> str:
    """The figure as a data: URL that an <img> shows."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg(spec).encode()).decode()


def _thin(series: Mapping[str, Any], most: int) -> Mapping[str, Any]:
    """The first and the last point, and of each stretch between the lowest and the highest: spikes stay."""
    xs, ys = list(series["x"]), [_number(y) for y in series["y"]]
    if len(xs) != len(ys) or len(xs) <= max(most, 4):
        return series
    finite = [i for i, y in enumerate(ys) if math.isfinite(y)]
    width = -(-len(finite) // max(1, (most - 2) // 2))
    stretches = [finite[i : i + width] for i in range(0, len(finite), width)]
    extremes = {f(stretch, key=lambda i: ys[i]) for stretch in stretches for f in (min, max)}
    kept = sorted(extremes | set(finite[:1]) | set(finite[-1:]))
    return {**series, "x": [xs[i] for i in kept], "y": [ys[i] for i in kept]}


def _text(value: Any) -> str:
    """A label as it is: between two dollars matplotlib would read mathematics, and fail where it is none."""
    return plain(str(value)).replace("$", r"\$")


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
