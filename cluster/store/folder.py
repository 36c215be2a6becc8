"""A folder under a manifest: what is in it, whether it still is, and a copy of it on this machine.

Artifacts and checkpoints are both such folders. Sizes are compared whenever one is looked at; checksums on
first use in a process, and whenever bytes have come over a network.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import shutil
import stat
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.cache import cache_root
from cluster.store.base import MANIFEST, NotFound, Store, files_in, join
from cluster.store.digest import sha256_files
from cluster.store.manifest import FileEntry
from model.inside import Outside, inside

DOWNLOADS = 8  # files at once
_log = logging.getLogger(__name__)
_verified: set[str] = set()  # folders checked by checksum in this process
_locks: dict[str, threading.Lock] = {}
_guard = threading.Lock()


class Corrupt(RuntimeError):
    """Bytes are not what their manifest says."""


def describe(folder: Path) -> dict[str, FileEntry]:
    """Size and SHA-256 of every file of a folder that is to be published.

    Raises:
        ValueError: a link, or a file named manifest.json.
    """
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise ValueError(f"{path} is a link: what is published must hold its own bytes. Copy the file instead.")
    names = files_in(folder)
    if MANIFEST in names:
        raise ValueError(f"{folder} has a file {MANIFEST}: that name is the store's own. Use another.")
    digests = sha256_files(folder / n for n in names)
    return {n: FileEntry(size=(folder / n).stat().st_size, sha256=d) for n, d in zip(names, digests, strict=True)}


def missing(store: Store, prefix: str, files: Mapping[str, FileEntry]) -> str | None:
    """What is wrong with the files at `prefix` by their sizes; None if nothing."""
    there = {e.key: e.size for e in store.list(prefix.rstrip("/"))}
    for name, entry in files.items():
        size = there.get(join(prefix, name))
        if size is None:
            return f"{name} is missing"
        if size != entry.size:
            return f"{name} has {size} bytes, not {entry.size}"
    return None


def local_copy(
    store: Store,
    prefix: str,
    files: Mapping[str, FileEntry],
    created: str,
    cache: Path | None,
    verify: bool = True,
) -> Path:
    """The folder on this machine that holds the files at `prefix`: the store's own, or a copy in the cache.

    Safe with many threads and processes at once: one downloads, the others wait for it.

    Args:
        created: tells two publications at one prefix apart.
        verify: by checksum, on the first call in this process; else by size.
    Raises:
        Corrupt: the store's bytes are wrong. A wrong copy in the cache is made again.
    """
    own = store.folder(prefix.rstrip("/"))
    folder = own if own is not None else cached_folder(store, prefix, created, cache)
    mark = f"{folder}|{created}"
    with _guard:
        lock = _locks.setdefault(mark, threading.Lock())
    with lock:
        if mark in _verified and _damage(folder, files, False) is None:
            return folder
        if own is not None:
            problem = _damage(own, files, verify)
            if problem:
                raise Corrupt(problem)
        else:
            _fill(store, prefix, files, folder, verify)
        if verify:
            _verified.add(mark)
        return folder


def _fill(store: Store, prefix: str, files: Mapping[str, FileEntry], folder: Path, verify: bool) -> None:
    """Download into the cache, unless a good copy is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it, however the process ends
        if folder.is_dir():
            problem = _damage(folder, files, verify)
            if not problem:
                return
            _log.warning("The copy %s is damaged (%s): downloading it again.", folder, problem)
            shutil.rmtree(folder)
        for leftover in folder.parent.glob(f"{folder.name}.part-*"):
            shutil.rmtree(leftover, ignore_errors=True)  # of a process killed while it held the lock
        fresh = folder.with_name(f"{folder.name}.part-{uuid.uuid4().hex[:8]}")
        try:
            fresh.mkdir()
            with ThreadPoolExecutor(DOWNLOADS) as pool:
                list(pool.map(lambda name: store.download(join(prefix, name), inside(fresh, name)), files))
            problem = _damage(fresh, files, True)
            if problem:
                raise Corrupt(problem)
            fresh.rename(folder)
        except (NotFound, NotADirectoryError, FileExistsError) as error:  # the last two: a file in another's name
            raise Corrupt(str(error)) from None
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _damage(folder: Path, files: Mapping[str, FileEntry], checksums: bool) -> str | None:
    for name, entry in files.items():
        try:
            info = inside(folder, name).stat()
        except OSError:
            info = None
        except Outside as error:
            return str(error)
        if info is None or not stat.S_ISREG(info.st_mode):
            return f"{name} is missing"
        if info.st_size != entry.size:
            return f"{name} has {info.st_size} bytes, not {entry.size}"
    if checksums:
        for name, digest in zip(files, sha256_files(inside(folder, n) for n in files), strict=True):
            if digest != files[name].sha256:
                return f"{name} has another checksum"
    return None


def cached_folder(store: Store, prefix: str, created: str, cache: Path | None) -> Path:
    """Where the copy of a remote folder is kept on this machine. Never the same place for two publications."""
    digest = hashlib.sha256(f"{store.url}|{prefix}|{created}".encode()).hexdigest()[:16]
    return (cache or cache_root()) / "artifacts" / f"{prefix.split('/')[0]}-{digest}"


def adopt(folder: Path, cached: Path) -> None:
    """Keep a folder that was just uploaded as its own copy in the cache, or else delete it."""
    with contextlib.suppress(OSError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(cached)
    shutil.rmtree(folder, ignore_errors=True)
