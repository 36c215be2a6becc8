"""Figures are drawn from data, and wrong data is refused."""

import base64
import math
import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from cluster.tracking.figures import draw, svg, svg_data_url

LINE = {
    "title": "Loss",
    "x_label": "step",
    "y_label": "nats",
    "kind": "line",
    "series": [
        {"name": "train", "x": [0, 1, 2], "y": [3.0, math.nan, 1.0]},
        {"name": "validation", "x": [2], "y": [None]},
    ],
}


def test_a_line_figure_has_its_labels_and_its_finite_points():
    axes = draw(LINE).axes[0]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("Loss", "step", "nats")
    first, second = axes.get_lines()
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([0, 2], [3.0, 1.0])
    assert len(second.get_xdata()) == 0


def test_bars_of_two_series_stand_side_by_side():
    series = [{"name": n, "x": ["prose", "code"], "y": [v, v + 1]} for n, v in (("model", 1.0), ("gzip", 2.0))]
    axes = draw({"kind": "bar", "series": series}).axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["prose", "code"]
    assert [p.get_height() for p in axes.patches] == [1.0, 2.0, 2.0, 3.0]
    assert len({round(p.get_x(), 6) for p in axes.patches}) == 4


def long_line(steps: int, lines: int = 1) -> dict:
    ys = [3 * math.exp(-step / steps) + math.sin(step * 1.7) / 10 for step in range(steps)]
    ys[steps // 3] = 50.0  # a spike of one step
    series = [{"name": f"loss {i}", "x": list(range(steps)), "y": ys} for i in range(lines)]
    return {**LINE, "series": series}


@pytest.mark.parametrize("lines", [1, 20])
def test_an_svg_of_a_hundred_thousand_steps_is_small_and_keeps_its_spike_and_its_ends(lines):
    text = svg(long_line(100_000, lines))
    assert len(svg_data_url(long_line(100_000, lines))) < 100_000
    root = ElementTree.fromstring(text)
    tag = "{http://www.w3.org/2000/svg}"
    shown = {e.text for e in root.iter(f"{tag}text")}
    assert {"Loss", "step", "nats", "loss 0"} <= shown
    paths = [e.get("d").replace("L", "M").split("M")[1:] for e in root.iter(f"{tag}path") if e.get("d")]
    points = [tuple(map(float, p.split()[:2])) for p in max(paths, key=len)]
    assert 10 < len(points) <= 610  # matplotlib simplifies paths, and may add a point
    heights = sorted(y for _, y in points)
    assert heights[1] - heights[0] > 100  # the one highest point, far above all others
    across = [x for x, _ in points]
    assert across == sorted(across)
    assert max(across) - min(across) > 300


def test_a_short_line_is_drawn_point_by_point():
    short = {**LINE, "series": [{"name": "a", "x": list(range(100)), "y": [math.sin(i) for i in range(100)]}]}
    path = next(e.get("d") for e in ElementTree.fromstring(svg(short)).iter() if e.get("d", "").count("L") > 50)
    assert path.count("L") == 99


def test_the_same_spec_gives_the_same_svg_in_another_process_on_another_day():
    here = svg(LINE)
    code = f"nan = float('nan'); from cluster.tracking.figures import svg; print(svg({LINE!r}), end='')"
    env = {**os.environ, "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1"}
    there = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout
    assert there == here


def test_an_svg_is_a_data_url_and_escapes_what_it_is_given():
    url = svg_data_url({**LINE, "title": "<script>alert(1)</script> & more"})
    head, _, body = url.partition("base64,")
    assert head == "data:image/svg+xml;"
    assert "<script>" not in base64.b64decode(body).decode()


def test_an_svg_of_nothing_and_of_bars_is_drawn():
    assert "<svg" in svg({**LINE, "series": []})
    assert "prose" in svg({"kind": "bar", "series": [{"name": "a", "x": ["prose"], "y": [1]}]})


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kind": "pie"}, "'line' or 'bar'"), ({"series": [{"name": "a", "x": [1], "y": []}]}, "1 x and 0 y")],
)
def test_what_cannot_be_drawn_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        draw({**LINE, **change})
    with pytest.raises(ValueError, match=message):
        svg({**LINE, **change})
