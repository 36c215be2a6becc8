"""A flow run's logs in Prefect's UI: what the screen says, and each stage's warnings and errors.

screen ─ a line ───────────────┐
logging ─ warnings and worse ──┴─▶ the mirror's queue ─▶ the logger of the task at work ─▶ Prefect's API
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.run import Run

# Loggers of what carries the logs: a warning of theirs would be one more log to carry.
CARRIERS = ("prefect", "httpx", "httpcore", "websockets", "uvicorn")


class RunLogs(logging.Handler):
    """Passes warnings and worse on to `say(text, level)`, from whatever thread they come."""

    def __init__(self, say: Callable[[str, int], None]) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] not in CARRIERS and not record.name.startswith("flows.prefect_"):
            self._say(self.format(record), record.levelno)


@contextlib.contextmanager
def attached(run: Run, say: Callable[..., None]) -> Iterator[None]:
    """Within this what the screen of `run` says, and what is logged, goes to `say(text, level)` too."""
    logs, root = RunLogs(say), logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in ("prefect.flow_runs", "prefect.task_runs")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.INFO)  # else as quiet as Prefect's other loggers
    root.addHandler(logs)
    run.screen.listeners.append(say)
    try:
        yield
    finally:
        run.screen.listeners.remove(say)
        root.removeHandler(logs)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
