"""Waiting for an MLflow that may never answer: in slices, so that Ctrl-C is heard, and no longer than is worth it.

A request is a call into a library, which nothing can end from outside. So it is made in a thread, and one that is given
up ends with the process; what it may still change in MLflow is what it was asked to.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

SLICE_SECONDS = 0.1
STOPPED_SECONDS = 5.0  # after a Ctrl-C, for what is nearly done
T = TypeVar("T")


class GivenUp(ConnectionError):
    """It took too long, or was to be stopped."""


def waited_for(
    work: Callable[[], T],
    seconds: float = math.inf,
    stopping: Callable[[], bool] = lambda: False,
    waiting: Callable[[float], None] = lambda seconds: None,
) -> T:
    """What `work` returns or raises, in a thread.

    Args:
        seconds: that it may take.
        stopping: once this turns true, it has STOPPED_SECONDS left.
        waiting: called all the while, with the seconds that it has taken.

    Raises:
        GivenUp: it has taken longer.
    """
    results: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="mlflow-request", daemon=True)
    thread.start()
    begun, end = time.monotonic(), time.monotonic() + seconds
    asked = False
    while thread.is_alive():
        thread.join(SLICE_SECONDS)
        now = time.monotonic()
        if not asked and stopping():
            asked, end = True, min(end, now + STOPPED_SECONDS)
        if thread.is_alive() and now > end:
            raise GivenUp(f"no answer within {now - begun:.0f} s")
        waiting(now - begun)
    if raised:
        raise raised[0]
    return results[0]
