"""A lease on what is being made: of two runs on one store, one makes it and the other waits for it.

    look ── free, or its owner is dead ──▶ take ──▶ make, while a thread renews the lease ──▶ give back
      ▲           │ no                      │ another was quicker
      └── wait ◀──┴─────────────────────────┘

STORE/work/FINGERPRINT/lease.json names the owner. An owner is dead when its lease has not been renewed for
TAKEN_OVER_SECONDS of the observer's own time (two machines' clocks are never compared), and at once where it
ran on this machine and the kernel has let go of its lock.

Whom this took over from is known by its nonce (`Lease.took_over`): that is the one judgement on who is dead, and
whoever has to know (tracking) goes by it. No clock of the wall is in it.

A lease spares work; it does not make publishing safe, which it is without. An owner that was paused for so long that
another took over is asked to stop (`Lease.lost`), and `holds` keeps it from the other's checkpoints.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator

from cluster.errors import Stopped
from cluster.store.base import Store
from cluster.store.lease_place import Owner, Place, Seen, place_of

HEARTBEAT_SECONDS = 5.0
TAKEN_OVER_SECONDS = 30.0  # without a heartbeat
POLL_SECONDS = 0.5  # between the looks of one who waits
SAY_SECONDS = 10.0  # between its words
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def lease(
    store: Store, fingerprint: str, step: str, stopping: Callable[[], bool], say: Callable[[str], None]
) -> Iterator[Lease]:
    """Hold the lease on `fingerprint`, once nobody else does; look afterwards whether there is still work to do.

    Args:
        step: its name, for those who wait.
        say: hears for whom this waits, once and then now and then.
    Raises:
        Stopped: `stopping` turned true while this waited.
    """
    place = place_of(store, fingerprint)
    mine = Owner.this_process(step)
    took_over = _acquire(place, mine, stopping, say)
    held = Lease(place, mine, took_over)
    try:
        yield held
    finally:
        held.close()


def _acquire(place: Place, mine: Owner, stopping: Callable[[], bool], say: Callable[[str], None]) -> str:
    """Returns the nonce of the dead owner whose lease it was, "" of one that was free."""
    watched: Seen | None = None
    quiet, looked, said = 0.0, time.monotonic(), -math.inf
    while True:
        seen, now = place.look(), time.monotonic()
        # Time in which this process was itself suspended is no sign that the owner is dead.
        quiet = quiet + min(now - looked, HEARTBEAT_SECONDS) if seen == watched else 0.0
        watched, looked = seen, now
        if seen is None or seen.dead or quiet > TAKEN_OVER_SECONDS:
            if place.take(mine, seen):
                if seen is None:
                    return ""
                _log.info("Took over %s from %s, which is dead or suspended.", mine.step, seen.owner)
                return seen.owner.nonce
            continue
        if stopping():
            raise Stopped(f"{mine.step} was not begun: it waited for {seen.owner}.")
        if now - said >= SAY_SECONDS:
            said = now
            say(f"made by {seen.owner}; waiting")
        time.sleep(POLL_SECONDS)


class Lease:
    """A lease that is held, and renewed by a thread until `close`."""

    def __init__(self, place: Place, owner: Owner, took_over: str = ""):
        self.nonce = owner.nonce  # see `holds`
        self.took_over = took_over  # the nonce of its last owner, if that one is dead or suspended
        self._place, self._owner = place, owner
        self._lost, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def lost(self) -> bool:
        """Whether another run has taken over: what is at work should end, and wait for it."""
        return self._lost.is_set()

    def close(self) -> None:
        """Give it back. Never raises: one that can't be given back is taken over."""
        self._closed.set()
        self._thread.join()
        try:
            self._place.leave(self._owner)
        except Exception:
            _log.warning("Can't give back the lease on %s", self._owner.step, exc_info=True)

    def _renew(self) -> None:
        while not self.lost() and not self._closed.wait(HEARTBEAT_SECONDS):
            try:
                if not self._place.renew(self._owner):
                    self._lost.set()
                    _log.warning("%s was taken over by another run: this one was suspended.", self._owner.step)
            except Exception:  # the store may answer next time; if it doesn't, another run takes over
                _log.debug("Can't renew the lease on %s", self._owner.step, exc_info=True)
