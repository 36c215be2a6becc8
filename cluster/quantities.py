"""Numbers as people read them."""

from __future__ import annotations

from typing import Any


def size(n: float) -> str:
    """Bytes for people: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1000
    raise AssertionError


def count(n: float) -> str:
    """A number for people: 999, 12.3k, 4.56M, 1.2B."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(n) >= limit:
            return f"{n / {'k': 1e3}.get(unit, limit):.3g}{unit}"
    return f"{n:,.0f}"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3m 05s, 2h 10m."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"


def total(value: Any) -> float:
    """The sum of all numbers in nested dicts."""
    if isinstance(value, dict):
        return sum(total(v) for v in value.values())
    return float(value) if isinstance(value, int | float) else 0.0


def numbers(values: Any, prefix: str = "") -> dict[str, float]:
    """The numbers of nested dicts, as `a/b` -> value; true and false are none."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = float(value)
    return found
