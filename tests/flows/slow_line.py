"""A line in a process of its own, for tests that send it signals: slow_line.py STORE KIND.

polite    works for a minute, and stops where it is asked to
brief     the same for a second
deaf      works for five minutes, whatever it is asked; STORE/heard says that it was
shown     works for two seconds, longer than Prefect waits for the next news of them, once Prefect has the flow run
refused   works for a second, once it is known that Prefect isn't there
patient   the same, and waits for Prefect at the end, as long as that takes
server    nothing but Prefect's embedded API
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes import fake_run

from cluster.errors import Stopped
from flows import prefect_mirror
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
    ends = time.monotonic() + 300
    while time.monotonic() < ends:
        if ws.stopping():
            Path(ws.artifacts.store.url, "heard").touch()
        time.sleep(0.05)
    return {}


def once(true: Callable[[], object], steps: int) -> Callable[[Any], dict]:
    def work(ws: Any) -> dict:
        while not true():
            time.sleep(0.1)
        return polite(ws, steps)

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
        shown = once(lambda: runs[0].watcher.flow_run_id, 40)
        refused = once(lambda: runs[0].watcher._problem, 20)
        kinds = {"polite": polite, "brief": once(lambda: True, 20), "deaf": deaf, "refused": refused}
        work = (kinds | {"shown": shown, "patient": shown})[kind]
        prefect_mirror.PROGRESS_SECONDS = 0.5
        prefect_mirror.CLOSING_SECONDS = 60.0 if kind == "patient" else 4.0
        runs.append(fake_run(store, {"corpus": lambda ws: {}, "train": work, "evaluate": lambda ws: {}}, console))
        runs[0].source = "slow"
        return ending(runs[0], console)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), sys.argv[2])
    leave(code)
    sys.exit(code)
