"""What an artifact in the making has cost so far, over all attempts: `STORE/work/FINGERPRINT/attempts/NONCE.json`.

    an attempt ─ every TICK_SECONDS, and when it ends ─▶ its own file        the one that publishes adds all of them up

A killed attempt is counted up to its last tick, one that was stopped or failed to its end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from typing import Self

from cluster.store.base import WORK, NotFound, Store

TICK_SECONDS = 10.0
SHORTEST = 1.0  # seconds; an attempt that failed at once cost nothing that is worth a file
_log = logging.getLogger(__name__)


class Attempt:
    """One attempt: what runs inside `with attempt:` is what it costs.

    Costs are (wall seconds, wall seconds x devices). nonce: of the lease, another one for each attempt.
    """

    def __init__(self, store: Store, fingerprint: str, nonce: str):
        self.devices = 1  # a stage that uses several says so when it begins
        self._store, self._folder = store, f"{WORK}/{fingerprint}/attempts"
        self._key = f"{self._folder}/{nonce}.json"
        self._begun, self._ended = time.perf_counter(), threading.Event()
        self._thread = threading.Thread(target=self._tick, name="attempt", daemon=True)

    def __enter__(self) -> Self:
        self._begun = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        if kind is not None and self.spent()[0] > SHORTEST:
            self.record()

    def _tick(self) -> None:
        while not self._ended.wait(TICK_SECONDS):
            self.record()

    def spent(self) -> tuple[float, float]:
        """This attempt's."""
        wall = time.perf_counter() - self._begun
        return wall, wall * self.devices

    def total(self) -> tuple[float, float]:
        """All attempts'."""
        wall, devices = self.spent()
        for entry in self._store.list(self._folder):
            if entry.key == self._key:
                continue
            with contextlib.suppress(NotFound, ValueError, KeyError):
                said = json.loads(self._store.read(entry.key))
                wall, devices = wall + float(said["wall_seconds"]), devices + float(said["device_seconds"])
        return wall, devices

    def record(self) -> None:
        """Never raises: what an attempt cost is not worth ending it."""
        wall, devices = self.spent()
        said = {"wall_seconds": round(wall, 3), "device_seconds": round(devices, 3)}
        try:
            self._store.write(self._key, json.dumps(said).encode())
        except Exception:
            _log.debug("Can't record %s", self._key, exc_info=True)

    def clear(self) -> None:
        """Forget all attempts."""
        self._store.delete_prefix(self._folder)
