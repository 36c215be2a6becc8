"""A stage that joins texts, and a line of two of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import BaseModel, Field

from cluster.stage import Stage, Step, how
from tests.given_summary import Given


@dataclass(frozen=True)
class Shape:
    width: int = 8
    layers: tuple[str, ...] = ("attention",)
    kernel: str = field(default="auto", metadata={"identity": False})


class Config(BaseModel):
    text: str = "a"
    rate: float = 0.5
    shape: Shape = Shape()
    sources: list[str] = Field(default_factory=list)
    workers: int = how(2, ge=1)


def write_text(ws) -> Given:
    (ws.out / "text").write_text(
        ws.config.text + "".join((a.path() / "text").read_text(encoding="utf-8") for a in ws.inputs.values()),
        encoding="utf-8",
    )
    ws.events.metrics(1, {"loss": 0.5})
    ws.attempt.devices = 3
    return Given({"length": len(ws.config.text), "devices": 3})


def stage(run=write_text, name="corpus", **kw) -> Stage:
    return Stage(
        **{
            "name": name,
            "kind": name,
            "version": 1,
            "config": Config,
            "run": run,
            "summary": Given,
            "uses_ray": False,
            **kw,
        }
    )


def line(config: Config | None = None, run=write_text, **kw) -> Step:
    corpus = Step("corpus", stage(**kw), config or Config(), {})
    return Step("filter", stage(run, name="documents"), Config(text="b"), {"corpus": corpus})
