"""A line in a process of its own, for tests that send it signals: slow_line.py STORE KIND."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes import fake_run

from cluster.errors import Stopped
from flows.cli.run import ending, leave
from flows.prefect_server import EmbeddedServer
from flows.quiet import quiet


def polite(ws: Any, steps: int = 1200) -> dict:
    for step in range(steps):
        ws.progress(step, steps, "")
        if step == 3:
            Path(ws.artifacts.store.url, "at-work").write_text("", encoding="utf-8")
        if ws.stopping():
            raise Stopped(f"at step {step}, with a checkpoint")
        time.sleep(0.05)
    return {}


def deaf(ws: Any) -> dict:
    Path(ws.artifacts.store.url, "at-work").write_text("", encoding="utf-8")
    time.sleep(60)
    return {}


def short(ws: Any) -> dict:
    """Works for six seconds, and says how far it is: longer than a page waits for the next."""
    return polite(ws, 120)


def shown(run: Any) -> Callable[[Any], dict]:
    """The same, once Prefect has the flow run."""

    def work(ws: Any) -> dict:
        while not run[0].watcher.flow_run_id:
            time.sleep(0.1)
        return short(ws)

    return work


def main(store: Path, kind: str) -> int:
    if kind == "server":
        server = EmbeddedServer()
        server.start()
        server.wait()
        (store / "at-work").write_text("", encoding="utf-8")
        time.sleep(60)
        return 0
    with quiet(store / "line.log") as console:
        runs: list[Any] = []
        work = {"polite": polite, "deaf": deaf, "short": short, "shown": shown(runs)}[kind]
        runs.append(fake_run(store, {"corpus": lambda ws: {}, "train": work, "evaluate": lambda ws: {}}, console))
        runs[0].source = "slow"
        return ending(runs[0], console)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), sys.argv[2])
    leave(code)
    sys.exit(code)
