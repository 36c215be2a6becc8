"""A flow run's logs in Prefect's UI: what the screen says, and each stage's warnings and errors.

screen ─ a line ───────────────┐
logging ─ warnings and worse ──┴─▶ the logger of the task at work, else of the flow ─▶ Prefect's API
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cluster.outside import plain

if TYPE_CHECKING:
    from flows.run import Run

# Loggers of what carries the logs: a warning of theirs would be one more log to carry.
CARRIERS = ("prefect", "httpx", "httpcore", "websockets", "uvicorn")


class RunLogs(logging.Handler):
    """Sends to the innermost run that is entered; threads of a stage have no run of their own."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        self._entered: list[Any] = []

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Within this the logs are those of the flow or task run that the caller is in."""
        from prefect import get_run_logger

        self._entered.append(get_run_logger())
        try:
            yield
        finally:
            self._entered.pop()

    def say(self, text: str) -> None:
        """A line of the screen."""
        if self._entered:
            self._entered[-1].info("%s", plain(text))

    def error(self, text: str) -> None:
        if self._entered:
            self._entered[-1].error("%s", plain(text))

    def emit(self, record: logging.LogRecord) -> None:
        if self._entered and record.name.partition(".")[0] not in CARRIERS:
            self._entered[-1].log(record.levelno, "%s", plain(self.format(record)))


@contextlib.contextmanager
def attached(run: Run) -> Iterator[RunLogs]:
    """Within this, which is a flow run's, the logs of `run` go there."""
    logs, root = RunLogs(), logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in ("prefect.flow_runs", "prefect.task_runs")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.INFO)  # else as quiet as Prefect's other loggers
    root.addHandler(logs)
    run.screen.listeners.append(logs.say)
    try:
        with logs.entered():
            yield logs
    finally:
        run.screen.listeners.remove(logs.say)
        root.removeHandler(logs)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
