"""What an evaluation says of its result: its metrics by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from cluster.release.gate import NOT_MEASURED
from cluster.report import Block, Numbers, Text
from cluster.stage import Summary

if TYPE_CHECKING:
    from cluster.store.artifact import Artifact

BOUND_ERROR = "bpb_bound_error"  # present where bpb is a bound
BITS = ("bpb", "unigram_bpb", "gzip_bpb")  # of all text, and as NAME/SOURCE of each source
SAMPLES = "samples.json"


def metric_names(sources: Iterable[str], tasks: Iterable[str], causal: bool) -> list[str]:
    """What an evaluation of these sources and tasks may measure."""
    bits, sources = BITS if causal else (*BITS, BOUND_ERROR), list(sources)
    names = [*(bits if sources else ()), *(f"{name}/{source}" for source in sources for name in bits)]
    return names + [f"{task}/{what}" for task in tasks for what in ("accuracy", "items")]


@dataclass(frozen=True)
class EvaluationSummary(Summary):
    """Flat metrics, and beside them those that there are not, with the reason."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    not_measured: Mapping[str, str] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        return dict(self.metrics) | ({NOT_MEASURED: dict(self.not_measured)} if self.not_measured else {})

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        metrics = {k: float(v) for k, v in values.items() if isinstance(v, int | float | str)}
        return cls(metrics, values.get(NOT_MEASURED, {}))

    def words(self) -> str:
        words = [f"{at_most(self.metrics)}{self.metrics['bpb']:.3f} bits per byte"] if "bpb" in self.metrics else []
        return "; ".join([*words, *self.closing()])

    def report(self, artifact: Artifact) -> Sequence[Block]:
        without = [Text(f"{name} was not measured: {why}.") for name, why in self.not_measured.items()]
        return [Numbers(self.metrics), *without]

    def closing(self) -> Sequence[str]:
        """A line for each `bpb` that was not measured."""
        bits = [name for name in self.not_measured if name.partition("/")[0] == BITS[0]]
        return [f"{name} was not measured: {self.not_measured[name]}" for name in bits]

    def sources(self) -> list[str]:
        """The sources whose held-out text was scored."""
        return sorted(k.partition("/")[2] for k in self.metrics if k.startswith("bpb/"))

    def other(self) -> list[str]:
        """The metrics beside bits per byte that a person compares."""
        return sorted(
            k for k in self.metrics if k.partition("/")[0] not in (*BITS, BOUND_ERROR) and not k.endswith("/items")
        )


def at_most(metrics: Mapping[str, Any]) -> str:
    """What to write before bits per byte: "≤ " if they are a bound."""
    return "≤ " if BOUND_ERROR in metrics else ""


def samples(artifact: Artifact) -> list[dict[str, str]]:
    """The prompts and completions of an evaluation; none if it has none."""
    return json.loads(artifact.read(SAMPLES)) if SAMPLES in artifact.manifest.files else []
