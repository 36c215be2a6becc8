"""Figures are drawn from data, and wrong data is refused."""

import math

import pytest

from cluster.tracking.figures import draw

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


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kind": "pie"}, "'line' or 'bar'"), ({"series": [{"name": "a", "x": [1], "y": []}]}, "1 x and 0 y")],
)
def test_what_cannot_be_drawn_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        draw({**LINE, **change})
