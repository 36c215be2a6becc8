"""Where a lease is kept: STORE/work/FINGERPRINT/lease.json, which names its owner; on a folder, and on S3.

Both keep what lease.py is built on: of several that find a lease free or its owner dead one gets it, and an
owner that has lost it changes nothing that is the new one's.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import AfterValidator, BaseModel, ValidationError

from cluster.store.base import WORK, NotFound, Store, StoreError
from cluster.store.local import TEMPORARY, opened
from cluster.store.manifest import Name
from cluster.store.s3 import S3Store

GUARD_SECONDS = 10.0  # that another process may take for a look and a rename


def _moment(text: str) -> str:
    moment = datetime.fromisoformat(text) if text else None
    if moment and not 1970 <= moment.year < 9000:  # outside of which not every zone has a time
        raise ValueError("it is of no run's time")
    return moment.isoformat() if moment else ""


Moment = Annotated[str, AfterValidator(_moment)]


class Owner(BaseModel):
    """Who holds a lease: what lease.json says."""

    nonce: Name = "unreadable"
    step: str = ""
    host: str = "an unknown host"
    pid: int = 0
    machine: str = ""  # differs between two kernels, and between two starts of one
    since: Moment = ""  # UTC, ISO 8601; for people

    @classmethod
    def this_process(cls, step: str) -> Owner:
        """With a nonce of its own for each call."""
        return cls(
            nonce=secrets.token_hex(8),
            step=step,
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_machine(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def __str__(self) -> str:
        begun = f" since {datetime.fromisoformat(self.since).astimezone():%H:%M}" if self.since else ""
        return f"PID {self.pid} on {self.host}{begun}"


@dataclass(frozen=True)
class Seen:
    """A lease at one look. `beat` changes whenever the owner renews it; `dead`: the owner is known to have ended."""

    owner: Owner
    beat: str
    dead: bool


class Place(Protocol):
    def look(self) -> Seen | None:
        """Who holds it; None: nobody."""
        ...

    def take(self, mine: Owner, seen: Seen | None) -> bool:
        """Make it mine, if it is still as it was `seen`: free, or a dead owner's. False: another was quicker."""
        ...

    def renew(self, mine: Owner) -> bool:
        """Show that its owner lives. False: it is another's by now."""
        ...

    def leave(self, mine: Owner) -> None:
        """Give it back, if it is still mine."""
        ...


def place_of(store: Store, fingerprint: str) -> Place:
    """The lease on `fingerprint` in this store."""
    root = store.folder("")
    if root is not None:
        return _InFolder(store, root, fingerprint)
    assert isinstance(store, S3Store)
    return _OnS3(store, fingerprint)


def holds(store: Store, fingerprint: str, nonce: str) -> bool:
    """Whether the lease on `fingerprint` is, at this moment, that of `nonce`."""
    owner = _owner(store, _key(fingerprint))
    return owner is not None and owner.nonce == nonce


class _InFolder:
    """One file, which its owner keeps locked and touches; it is exchanged by a rename under a lock of the store's."""

    def __init__(self, store: Store, root: Path, fingerprint: str):
        self.store, self.key = store, _key(fingerprint)
        self.path = root / self.key
        self.guard = root / WORK / f"{TEMPORARY}leases.lock"  # for all leases, and for good
        self.descriptor = -1

    def look(self) -> Seen | None:
        try:
            with opened(self.path) as file:  # opening asks a network file system for the newest state
                owner = _parse(file.read())
                beat = os.fstat(file.fileno()).st_mtime_ns
                return Seen(owner, str(beat), owner.machine == _machine() and _unlocked(file.fileno()))
        except FileNotFoundError:
            return None

    def take(self, mine: Owner, seen: Seen | None) -> bool:
        with self._alone():
            now = self.look()
            if (now and now.owner) != (seen and seen.owner) or (now and not now.dead and now != seen):
                return False
            fresh = self.path.with_name(f"{TEMPORARY}{mine.nonce}")
            while self.descriptor < 0:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # a neighbour has just removed the empty folder: again
                    self.descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX)  # whoever sees the file sees it locked
                os.write(self.descriptor, mine.model_dump_json().encode())
                fresh.rename(self.path)
            except BaseException:
                self._let_go()
                fresh.unlink(missing_ok=True)
                raise
            return True

    def renew(self, mine: Owner) -> bool:
        os.utime(self.descriptor)  # its own file, also where another has put a new one in its place
        owner = _owner(self.store, self.key)
        return owner is not None and owner.nonce == mine.nonce

    def leave(self, mine: Owner) -> None:
        try:
            with self._alone():
                owner = _owner(self.store, self.key)
                if owner is not None and owner.nonce == mine.nonce:
                    self.path.unlink(missing_ok=True)
                    with contextlib.suppress(OSError):
                        self.path.parent.rmdir()  # unless something else is in it
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self.guard.parent.mkdir(parents=True, exist_ok=True)
        ends = time.monotonic() + GUARD_SECONDS
        with self.guard.open("a", encoding="utf-8") as file:
            while not _lock(file.fileno(), fcntl.LOCK_EX):
                if time.monotonic() > ends:
                    raise StoreError(f"Another process has kept {self.guard} locked for {GUARD_SECONDS:g} s.")
                time.sleep(0.01)
            yield


class _OnS3:
    """lease.json, and beside it work/FINGERPRINT/claims/NONCE, which only its owner writes.

    A claim is put before the last look at lease.json, and listed after lease.json was put. So of two that both
    found it free, the one whose lease.json is overwritten sees the other's claim, and waits until lease.json has
    settled: whether the server holds the condition of a put, and to its end, doesn't matter.
    """

    def __init__(self, store: S3Store, fingerprint: str):
        self.store, self.key = store, _key(fingerprint)
        self.claims = f"{WORK}/{fingerprint}/claims"
        self.beats = 0

    def look(self) -> Seen | None:
        owner = _owner(self.store, self.key)
        if owner is None:
            return None
        claim = self.store.stat(self._claim(owner))
        return Seen(owner, claim.etag if claim else "", claim is None)

    def take(self, mine: Owner, seen: Seen | None) -> bool:
        try:
            self._beat(mine)
            if self._put(mine, seen):
                if seen is not None:
                    self.store.delete_prefix(self._claim(seen.owner))
                return True
        except BaseException:
            self.leave(mine)
            raise
        self.store.delete_prefix(self._claim(mine))
        return False

    def _put(self, mine: Owner, seen: Seen | None) -> bool:
        data = mine.model_dump_json().encode()
        if seen is not None and _owner(self.store, self.key) != seen.owner:
            return False
        if not self.store.write(self.key, data, if_absent=seen is None):  # looks itself, first
            return False
        known = {self._claim(mine), self._claim(seen.owner) if seen else ""}
        if all(entry.key in known for entry in self.store.list(self.claims)):
            return True
        return self.store.settled(self.key) == data

    def renew(self, mine: Owner) -> bool:
        owner = _owner(self.store, self.key)
        if owner is None or owner.nonce != mine.nonce:
            return False
        self._beat(mine)
        return True

    def leave(self, mine: Owner) -> None:
        owner = _owner(self.store, self.key)
        if owner is not None and owner.nonce == mine.nonce:
            self.store.delete_prefix(self.key)
        self.store.delete_prefix(self._claim(mine))

    def _beat(self, mine: Owner) -> None:
        self.beats += 1
        self.store.write(self._claim(mine), str(self.beats).encode())

    def _claim(self, owner: Owner) -> str:
        return f"{self.claims}/{owner.nonce}"


def _key(fingerprint: str) -> str:
    return f"{WORK}/{fingerprint}/lease.json"


def _owner(store: Store, key: str) -> Owner | None:
    try:
        return _parse(store.read(key))
    except NotFound:
        return None


def _parse(data: bytes) -> Owner:
    try:
        return Owner.model_validate_json(data)
    except ValidationError:
        return Owner()  # nobody renews it: it is taken over


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlocked(descriptor: int) -> bool:
    return _lock(descriptor, fcntl.LOCK_SH)  # shared, so that two that look don't take each other for the owner


@functools.cache
def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return socket.gethostname()
