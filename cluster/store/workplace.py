"""The folder a stage builds its artifact in: its own for each run, and cleared away once its owner is dead.

On a local store it is STORE/work/FINGERPRINT/out-PID-NONCE, so that publishing is a rename; for S3 it is in
this machine's temporary folder. A lock file beside it is held by the owner: the kernel lets go of it however
the process ends, so a dead owner is known from a live one on every machine and in every container that shares
the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from cluster.cache import own_temporary
from cluster.store import Store
from cluster.store.base import WORK


@contextlib.contextmanager
def build_folder(store: Store, fingerprint: str) -> Iterator[Path]:
    """An empty folder to build in.

    Left as it is when the work fails, so that its events can still be sent and its files looked at; the next run of the
    same work removes it.
    """
    work = _work_folder(store, fingerprint)
    remove_dead(work)
    folder, descriptor = _claim(work)
    try:
        yield folder
        if not folder.exists():  # published
            folder.with_suffix(".lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                work.rmdir()  # unless something else is in it
    finally:
        os.close(descriptor)


def _claim(work: Path) -> tuple[Path, int]:
    """A new folder in `work`, and the descriptor that holds its lock."""
    while True:
        folder = work / f"out-{os.getpid()}-{secrets.token_hex(3)}"
        lock = folder.with_suffix(".lock")
        with contextlib.suppress(FileNotFoundError):  # a neighbour has just removed `work`, or the lock: again
            work.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if lock.stat().st_ino == os.fstat(descriptor).st_ino:
                    folder.mkdir()
                    return folder, descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


def remove_dead(work: Path) -> None:
    """Remove the folders in `work` whose owners have ended."""
    for lock in work.glob("out-*.lock"):
        with contextlib.suppress(OSError), lock.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)


def _work_folder(store: Store, fingerprint: str) -> Path:
    own = store.folder(f"{WORK}/{fingerprint}")
    if own is not None:
        return own
    return own_temporary() / WORK / fingerprint
