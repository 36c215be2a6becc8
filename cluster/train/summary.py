"""What every training stage says of its result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.quantities import count
from cluster.report import Block, Curve, Text
from cluster.stage import EVENTS, Summary

if TYPE_CHECKING:
    from cluster.store.artifact import Artifact

MAX_READ = 64 << 20  # of an events.jsonl, for its curve


@dataclass(frozen=True)
class TrainingSummary(Summary):
    """`loss` is the last step's; the rates are medians after the first fifth of the steps."""

    steps: int = 0
    parameters: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    precision: str = ""
    mixers: Sequence[str] = ()
    objective: str = ""
    resumed_from: int | None = None
    set_aside: Sequence[str] = ()  # damaged checkpoints, and why
    devices: int = 1
    device: str = "cpu"

    def words(self) -> str:
        size = [f"{count(self.parameters)} parameters"] if self.parameters else []
        words = [" of ".join(size + ([" and ".join(self.mixers)] if size and self.mixers else []))] if size else []
        words += [f"loss {self.loss:.3f}"] if self.loss is not None else []
        words += [f"{count(self.tokens_per_second)} tok/s"] if self.tokens_per_second is not None else []
        words += [f"resumed from step {self.resumed_from}"] if self.resumed_from else []
        words += [f"damaged checkpoint set aside: {one}" for one in self.set_aside[:2]]
        words += [f"and {len(self.set_aside) - 2} more"] if len(self.set_aside) > 2 else []
        return ", ".join(words)

    def report(self, artifact: Artifact) -> Sequence[Block]:
        points = loss_curve(artifact)
        how = [Text(f"Trained by {self.objective}.")] if self.objective else []
        return [Text(self.words()), *how, *([Curve("loss", "step", "loss", points)] if points else [])]


def gist(config: Any) -> str:
    """What a training's config asks for."""
    mixers = [" and ".join(dict.fromkeys(config.model.layer_mixers))] if hasattr(config, "model") else []
    return ", ".join([*mixers, config.train.objective, f"{count(config.train.steps)} steps"])


def loss_curve(artifact: Artifact) -> list[tuple[int, float]]:
    """(step, loss) of a model's training, from its events."""
    entry = artifact.manifest.files.get(EVENTS)
    if entry is None or entry.size > MAX_READ:
        return []
    points: dict[int, float] = {}
    for line in artifact.read(EVENTS).splitlines():
        event = json.loads(line)
        if event.get("type") == "metrics" and isinstance(event["values"].get("loss"), int | float):
            points[int(event["step"])] = float(event["values"]["loss"])
    return sorted(points.items())
