"""The folder a stage builds its artifact in: its own for each run, and cleared away once its owner is dead.

On a local store it is STORE/work/FINGERPRINT/out-PID-NONCE, so that publishing is a rename; for S3 it is in
this machine's temporary folder. A lock file beside it is held by the owner: the kernel lets go of it however
the process ends, so a dead owner is told from a live one on every machine and in every container that shares
the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cluster.store import Store


@contextlib.contextmanager
def build_folder(store: Store, fingerprint: str) -> Iterator[Path]:
    """An empty folder to build in. Left as it is when the work fails, so that its events can still be sent
    and its files looked at; the next run of the same work removes it."""
    work = _work_folder(store, fingerprint)
    work.mkdir(parents=True, exist_ok=True)
    remove_dead(work)
    name = f"out-{os.getpid()}-{secrets.token_hex(3)}"
    lock = work / f"{name}.lock"
    descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        lock.touch()  # a clearing neighbour may have taken it for a dead one's between the two calls
        folder = work / name
        folder.mkdir()
        yield folder
        if not folder.exists():
            lock.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                work.rmdir()  # only where nothing else is in it
    finally:
        os.close(descriptor)


def remove_dead(work: Path) -> None:
    """Remove the folders in `work` whose owners have ended."""
    for lock in work.glob("out-*.lock"):
        with contextlib.suppress(OSError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)


def _work_folder(store: Store, fingerprint: str) -> Path:
    own = store.folder(f"work/{fingerprint}")
    if own is not None:
        return own
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return Path(tempfile.gettempdir()) / f"tokenmill-{user}" / "work" / fingerprint
