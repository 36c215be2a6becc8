"""Ctrl-C: the first asks the running stage to write a checkpoint and stop, the second ends the process at once.

What is left behind by either can be gone on from: artifacts and checkpoints are published whole or not at all, and the
processes this one started (a local Ray, Prefect's embedded API) end with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import psutil


class StopFlag:
    """Callable: True once SIGINT or SIGTERM came. `exit_code` is the shell's for that signal.

    Args:
        asked: called once, at the first signal (from a signal handler: only light work).
    """

    def __init__(self, asked: Callable[[], None] = lambda: None):
        self.asked = asked
        self.signal: int | None = None
        self._old: dict[int, Any] = {}

    def __call__(self) -> bool:
        if self._old:
            self.install()
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return 128 + (self.signal or signal.SIGINT)

    def install(self) -> StopFlag:
        """Take both signals; again at each look: libraries put their own handlers over it, Ray once it is up."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                old = signal.signal(number, self._handle)
                self._old.setdefault(number, old)
        return self

    def restore(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, old in self._old.items():
                # None: a handler that isn't Python's, which it can't put back
                signal.signal(number, signal.SIG_DFL if old is None else old)
        self._old.clear()

    def __enter__(self) -> StopFlag:
        return self.install()

    def __exit__(self, *_: object) -> None:
        self.restore()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            _end_at_once(128 + number)
        signal.alarm(0)  # Ray's own handler, if it came first, has set one that aborts the process in 3 seconds
        self.signal = number
        self.asked()


def _end_at_once(code: int) -> None:
    """Ends this process and all that it started (by their ids), without waiting for any of them."""
    try:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    finally:
        os._exit(code)
