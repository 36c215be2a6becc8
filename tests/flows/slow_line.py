"""A line in a process of its own, for tests that send it signals: slow_line.py STORE (polite|deaf|server)."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from fakes import fake_run

from cluster.errors import Stopped
from flows.cli.run import ending
from flows.prefect_server import EmbeddedServer
from flows.quiet import quiet


def polite(ws: Any) -> dict:
    for step in range(1200):
        ws.progress(step, 1200, "")
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


def main(store: Path, kind: str) -> int:
    if kind == "server":
        server = EmbeddedServer()
        server.start()
        server.wait()
        (store / "at-work").write_text("", encoding="utf-8")
        time.sleep(60)
        return 0
    with quiet(store / "line.log") as console:
        run = fake_run(store, {"corpus": lambda ws: {}, "train": {"polite": polite, "deaf": deaf}[kind]}, console)
        run.source = "slow"
        return ending(run, console)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
