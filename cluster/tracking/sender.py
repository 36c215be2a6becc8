"""Who delivers an outbox, when, and with how much patience.

A folder's lock is held by the process that writes it; the kernel frees it however that process ends. So whoever can
take the lock of a folder that isn't its own has found what a dead process left, and delivers it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

from cluster.masking import masked
from cluster.tracking.outbox import Delivery

POLL_SECONDS = 0.5
LONGEST_WAIT = 15.0  # seconds between two attempts at an MLflow that is away
_log = logging.getLogger(__name__)


class Task:
    """A delivery with its patience. With a lock, it is an earlier run's, and its folder goes when it is done."""

    def __init__(self, delivery: Delivery, lock: Any = None):
        self.delivery, self._lock = delivery, lock
        self.done = False
        self.problem: str | None = None
        self._failures, self._failed_at = 0, -math.inf

    def attempt(self, hurry: bool = False) -> None:
        """Try, unless the last failure was too short a while ago: a second in a hurry, else ever longer."""
        wait = min(POLL_SECONDS * 2**self._failures, 1.0 if hurry else LONGEST_WAIT)
        if (self._lock is not None and self.done) or time.monotonic() - self._failed_at < wait:
            return
        try:
            self.done = self.delivery.pump()
        except Exception as error:  # whatever it is, the work that is tracked goes on
            if self.problem is None:
                _log.warning("MLflow at %s: %s; trying again", self.delivery.line["uri"], error, exc_info=True)
            self.problem = masked(str(error)) or type(error).__name__
            self._failures, self._failed_at = min(self._failures + 1, 10), time.monotonic()
            self.done = False
            self.delivery.reconnect()
            return
        self.problem, self._failures, self._failed_at = None, 0, -math.inf
        if self.done and self._lock is not None:
            remove(self.delivery.folder)
            self.release()

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()


def claim(folder: Path, new: bool = False) -> Any:
    """An open file that holds the folder's lock, or None if another process holds it.

    Raises:
        FileNotFoundError: the folder isn't `new`, and has no lock: whoever delivered it has removed it.
    """
    file = (folder / "lock").open("x" if new else "r+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def left_behind(state: Path, own: Path) -> list[tuple[Delivery, Any]]:
    """Folders of processes that are dead."""
    found = []
    for folder in sorted(p.parent for p in state.glob("*/line.json") if p.parent != own):
        lock = None
        try:
            lock = claim(folder)
            if lock is not None:
                found.append((Delivery(folder, live=False), lock))
        except (OSError, ValueError) as error:
            if not isinstance(error, FileNotFoundError):  # else it is gone just now, delivered
                _log.warning("Can't deliver %s: %s", folder, error)
            if lock is not None:
                lock.close()
    return found


def remove(folder: Path) -> None:
    """The folder has done its work; what MLflow refused stays, beside it.

    line.json goes first: by it a folder is found, and one without its positions would be delivered again.
    """
    with contextlib.suppress(FileNotFoundError):
        (folder / "refused.jsonl").replace(folder.with_name(f"{folder.name}-refused.jsonl"))
    with contextlib.suppress(FileNotFoundError):
        (folder / "line.json").unlink()
    shutil.rmtree(folder, ignore_errors=True)
