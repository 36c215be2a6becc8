"""The gate: whether a model may take the champion's place, and why not.

[[release.metrics]]  metric = "bpb"     mode = "min"                        must be better than the champion's
[[release.metrics]]  metric = "reward"  mode = "max"  max_regression = 0.02 may be worse by 0.02 at most
[[release.require]]  metric = "bpb"     max = 3.0                           must hold, champion or not
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.errors import UserError, nearest

NOT_MEASURED = "not_measured"  # in an evaluation's summary: {metric: why there is none}


class GateMetric(BaseModel):
    """A metric that is compared with the champion's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str = Field(min_length=1, description="a name in the evaluation's summary, e.g. bpb")
    mode: Literal["min", "max"] = Field(description="which is better: min, the smaller, or max, the larger")
    max_regression: float | None = Field(
        None, ge=0, description="how much worse it may be, in the metric's unit; not given: it must be better"
    )


class Requirement(BaseModel):
    """Bounds that a metric must keep, whatever the champion does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str = Field(min_length=1)
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _some_bound(self) -> Requirement:
        if self.min is None and self.max is None:
            raise UserError(f"a bound for {self.metric!r}: min, max or both.")
        return self


@dataclass(frozen=True)
class Verdict:
    """What the gate found: one line for each metric, and those that speak against the model."""

    passed: bool
    reason: str
    rows: list[dict] = field(default_factory=list)  # metric, value, champion, verdict


def judge(
    metrics: Mapping[str, float],
    champion: Mapping[str, float] | None,
    compare: tuple[GateMetric, ...],
    require: tuple[Requirement, ...] = (),
    not_measured: Mapping[str, str] | None = None,
) -> Verdict:
    """Compare a model's metrics with the champion's (None: there is no champion yet).

    A metric that the model lacks, or whose value isn't finite, fails. One that only the champion lacks, because
    it was evaluated by another recipe, can't be compared and passes.

    Args:
        not_measured: why the evaluation lacks a metric, by the metric's name.
    """
    why = not_measured or {}
    rows: list[dict] = []
    against: list[str] = []

    def row(metric: str, value: float | None, other: float | None, problem: str, good: str) -> None:
        rows.append({"metric": metric, "value": value, "champion": other, "verdict": problem or good})
        if problem:
            against.append(f"{metric}: {problem}")

    for one in compare:
        value, other = metrics.get(one.metric), None if champion is None else champion.get(one.metric)
        problem, good = _missing(one.metric, value, metrics, why), ""
        if value is None or problem:
            pass
        elif other is None or not math.isfinite(other):
            good = "first champion" if champion is None else "the champion has no such metric"
        else:
            gain = (other - value) if one.mode == "min" else (value - other)
            if one.max_regression is None:
                good = f"better by {gain:.4g}"
                problem = "" if gain > 0 else f"{value:.6g} is not better than the champion's {other:.6g}"
            else:
                good = (
                    "equal" if not gain else f"better by {gain:.4g}" if gain > 0 else f"worse by {-gain:.4g}, allowed"
                )
                if gain < -one.max_regression:
                    problem = (
                        f"{value:.6g} is worse than the champion's {other:.6g} by more than {one.max_regression:g}"
                    )
        row(one.metric, value, other, problem, good)
    for bound in require:
        value = metrics.get(bound.metric)
        problem = _missing(bound.metric, value, metrics, why)
        if value is not None and not problem:
            if bound.min is not None and value < bound.min:
                problem = f"{value:.6g} is below the required {bound.min:g}"
            if bound.max is not None and value > bound.max:
                problem = f"{value:.6g} is above the required {bound.max:g}"
        row(bound.metric, value, None, problem, "within its bounds")
    return Verdict(not against, "; ".join(against) or "all metrics hold", rows)


def _missing(name: str, value: float | None, metrics: Mapping[str, float], why: Mapping[str, str]) -> str:
    if value is None and name in why:
        return f"it was not measured: {why[name]}"
    if value is None:
        close = nearest(name, metrics)
        return "the evaluation has no such metric" + (f"; did you mean {close[0]!r}?" if close else "")
    return "" if math.isfinite(value) else f"{value} is not finite"
