"""Fake stages, a fake tracker, and a run made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console

from cluster.stage import Stage, Step, Summary
from cluster.store.artifact import Artifacts
from flows.run import Run, look
from flows.show import Screen
from flows.stop import StopFlag
from tests.given_summary import Given


class FakeConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    value: int = 0


class FakeTracked:
    def __init__(self, name: str):
        self.name, self.open, self.status, self.cached = name, True, "", False

    def finish(self, status: str = "FINISHED", summary: Any = None, events_path: Any = None) -> None:
        self.open, self.status = False, status

    def wait_run_id(self, timeout: float = 0) -> str:
        return "f" * 32


class FakeTracker:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.runs: list[FakeTracked] = []
        self.status = ""
        self.place = SimpleNamespace(uri="sqlite:///mlflow.db", command="mlflow ui", is_server=False)

    def start_line(self, name: str, *_: Any) -> FakeTracked:
        self.runs.append(FakeTracked("line"))
        return self.runs[-1]

    def stage(self, step: str, fingerprint: str = "", cached: bool = False, **_: Any) -> FakeTracked:
        run = FakeTracked(step)
        run.cached = cached
        if cached:
            run.finish()
        self.runs.append(run)
        return run

    def url(self, run: Any) -> str:
        return f"http://127.0.0.1/#/runs/{run}"

    def finish(self, status: str = "FINISHED", **_: Any) -> bool:
        self.status = status
        return True


def fake_stage(name: str, work: Callable[[Any], Any], summary: type[Summary] | None = None) -> Stage:
    def run(ws: Any) -> Summary:
        (ws.out / "data.txt").write_text(f"{name} {ws.config.value}", encoding="utf-8")
        made = work(ws)
        return made if isinstance(made, Summary) else Given(made)

    return Stage(name, name, 1, FakeConfig, run, summary or Given, uses_ray=False)


def fake_steps(
    stages: dict[str, Callable[[Any], Any]],
    values: dict[str, int] | None = None,
    summaries: dict[str, type[Summary]] | None = None,
) -> list[Step]:
    """A chain of steps, each reading the one before."""
    steps: list[Step] = []
    for name, work in stages.items():
        config = FakeConfig(value=(values or {}).get(name, 0))
        stage = fake_stage(name, work, (summaries or {}).get(name))
        steps.append(Step(name, stage, config, {"before": steps[-1]} if steps else {}))
    return steps


def fake_run(store: Path, stages: dict[str, Any], console: Console, **options: Any) -> Run:
    steps = fake_steps(stages, options.pop("values", None), options.pop("summaries", None))
    artifacts = Artifacts(store)
    stop = StopFlag()
    return Run(
        name="fake",
        steps=steps,
        artifacts=artifacts,
        session=SimpleNamespace(start=lambda: None, close=lambda: None),  # type: ignore[arg-type]
        tracker=FakeTracker(),  # type: ignore[arg-type]
        stop=stop,
        screen=Screen(console, stop),
        found=look(steps, artifacts),
        **options,
    )
