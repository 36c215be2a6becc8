"""What a stage has to show of its result: blocks that each page draws in its own way.

Text      a paragraph
Table     a title, columns, rows
Curve     points (x, y) of one line
Numbers   metrics by name, a table that can be sorted
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Text:
    """One paragraph of plain text."""

    body: str


@dataclass(frozen=True)
class Table:
    """Rows of plain values under their columns' names."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Curve:
    """One line; points in the order of x."""

    title: str
    x_label: str
    y_label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Numbers:
    """Metrics by name."""

    values: Mapping[str, float]


Block = Text | Table | Curve | Numbers
