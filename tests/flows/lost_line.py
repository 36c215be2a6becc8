"""A line of a data stage and a training on a real Ray of two workers, for a test that kills parts of that Ray.

lost_line.py STORE MAX_FAILURES      each stage waits at its work, the first time, for STORE/NAME-goes-on
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from fakes import fake_run
from pydantic import BaseModel
from ray import cloudpickle

from cluster.data.streaming import gather, stop_check
from cluster.session import ClusterConfig, Session
from cluster.stage import Stage, Step
from cluster.train.fit import fit
from cluster.train.worker import Worker
from flows import walk
from flows.cli.run import ending
from flows.quiet import quiet
from flows.run import look
from tests.given_summary import Given


class Config(BaseModel):
    folder: str


def wait(folder: str, name: str) -> None:
    """At its work; whoever has seen it there says when it may go on."""
    (Path(folder) / f"{name}-at-work").write_text("", encoding="utf-8")
    while not (Path(folder) / f"{name}-goes-on").exists():
        time.sleep(0.1)


def piece(folder: str, number: int) -> int:
    if number == 1:
        wait(folder, "data")
    return number * number


def data(ws: Any) -> Given:
    calls = [(piece, (ws.config.folder, number)) for number in range(4)]
    found = sorted(value for _, value in gather(calls, stop_check(ws)))
    (ws.out / "data.txt").write_text(str(found), encoding="utf-8")
    return Given({"found": found})


def train(worker: Worker, config: Config) -> dict:
    found = worker.resume()
    for step in range((found[0] if found else 0) + 1, 7):
        worker.metrics(step, {"loss": worker.mean({"rank": (float(step), 1)})["rank"]})
        if step == 2:
            worker.save(step, lambda folder: (folder / "state.txt").write_text("whole", encoding="utf-8"))
        if step == 3:
            worker.flush()
            wait(config.folder, "train")
    return {"resumed_from": found[0] if found else None}


def main(store: Path, max_failures: int) -> int:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import this file
    walk.RETRY_SECONDS = (0, 0)
    config = Config(folder=str(store))
    first = Step("data", Stage("data", "data", 1, Config, data, Given), config, {})
    second = Step(
        "train", Stage("train", "train", 1, Config, lambda ws: Given(fit(ws, train, config)), Given), config,
        {"data": first},
    )  # fmt: skip
    with quiet(store / "line.log") as console:
        run = fake_run(store, {}, console)
        run.steps, run.source = [first, second], "lost"
        run.found = look(run.steps, run.artifacts)
        run.session = Session(ClusterConfig(workers=2, cpus_per_worker=0.5, max_failures=max_failures))
        return ending(run, console)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
