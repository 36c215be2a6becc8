"""A stage that counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.cost import Cost, Machine
from cluster.report import Block, Text
from cluster.stage import Stage, Step, Summary, Workspace


class CountingConfig(BaseModel):
    """`[counting]` of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    up_to: int = Field(3, ge=1)


@dataclass(frozen=True)
class CountingSummary(Summary):
    counted: int = 0

    def words(self) -> str:
        return f"counted to {self.counted}"

    def report(self, artifact: Any) -> Sequence[Block]:
        return [Text(f"All numbers up to {self.counted}.")]

    def closing(self) -> Sequence[str]:
        return [f"The last number was {self.counted}."]


def run(ws: Workspace) -> CountingSummary:
    (ws.out / "numbers.txt").write_text(" ".join(str(n + 1) for n in range(ws.config.up_to)), encoding="utf-8")
    return CountingSummary(ws.config.up_to)


def cost(step: Step, machine: Machine) -> Cost:
    return Cost(step.name, (machine.work("counting", step.config.up_to, 1e12),), 1000, "none")


STAGE = Stage("counting", "numbers", 1, CountingConfig, run, CountingSummary, uses_ray=False, cost=cost)
