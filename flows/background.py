"""Slow starts side by side: Prefect's API, a local Ray, MLflow's database, while the main thread imports.

Each start has a thread that lives until `close`: Linux delivers "your parent died" (by which Ray's
processes end with us) when the *thread* that forked them ends, so a thread that only starts Ray would take
it down again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Background:
    """Named starts. `wait(name)` gives what the start returned, or raises what it raised."""

    def __init__(self) -> None:
        self._closing = threading.Event()
        self._ready: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []
        self._results: dict[str, Any] = {}
        self._errors: dict[str, BaseException] = {}

    def start(self, name: str, begin: Callable[[], Any]) -> None:
        """Begin, unless a start of this name is under way or was well; one that failed is tried again."""
        if name in self._ready and self._errors.pop(name, None) is None:
            return
        ready = self._ready[name] = threading.Event()

        def run() -> None:
            try:
                self._results[name] = begin()
            except BaseException as error:  # told to whoever waits
                self._errors[name] = error
            ready.set()
            self._closing.wait()

        thread = threading.Thread(target=run, name=f"start-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def wait(self, name: str, stopping: Callable[[], bool] = lambda: False) -> Any:
        """Until it is up, or `stopping` turns true (then None)."""
        while not self._ready[name].wait(0.1):
            if stopping():
                return None
        if name in self._errors:
            raise self._errors[name]
        return self._results[name]

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join(1)
