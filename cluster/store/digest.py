"""SHA-256 of files: streamed, many at once, and remembered for files that haven't changed.

hashlib lets go of the interpreter's lock, so threads hash on several cores.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.cache import cache_root

THREADS = min(16, (os.cpu_count() or 1))
_RACY_SECONDS = 2.0  # a file this young may change again without its mtime changing


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(paths: Iterable[Path]) -> list[str]:
    """The digest of each, in order."""
    paths = list(paths)
    if len(paths) < 2 or THREADS < 2:
        return [sha256_file(p) for p in paths]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(sha256_file, paths))


def remembered_sha256(paths: Iterable[Path]) -> list[str]:
    """Like sha256_files, for data that others own: a file is read again only where it has changed.

    Changed is: another path, size, mtime or inode. The memory is a small database in the cache; where none
    can be kept (a read-only home), every file is read.
    """
    paths = [p.absolute() for p in paths]
    keys = []
    for path in paths:
        stat = path.stat()
        keys.append((str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino))
    known: dict[tuple, str] = {}
    with _memory() as memory:
        if memory:
            for key in keys:
                row = memory.execute(
                    "select sha256 from digests where path=? and size=? and mtime_ns=? and inode=?", key
                ).fetchone()
                if row:
                    known[key] = row[0]
    missing = [(p, k) for p, k in zip(paths, keys, strict=True) if k not in known]
    fresh = dict(zip([k for _, k in missing], sha256_files(p for p, _ in missing), strict=True))
    old_enough = time.time_ns() - int(_RACY_SECONDS * 1e9)
    lasting = [(*k, d) for k, d in fresh.items() if k[2] < old_enough]
    if lasting:
        with _memory() as memory:
            if memory:
                memory.executemany("insert or replace into digests values (?,?,?,?,?)", lasting)
    return [known.get(k) or fresh[k] for k in keys]


@contextlib.contextmanager
def _memory():
    """The database, or None where none can be had: a lost memory costs time, never correctness."""
    connection = None
    try:
        folder = cache_root()
        folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(folder / "digests.sqlite", timeout=10)
        connection.execute(
            "create table if not exists digests"
            " (path text primary key, size integer, mtime_ns integer, inode integer, sha256 text)"
        )
    except (OSError, sqlite3.Error):
        if connection:
            connection.close()
        connection = None
    try:
        yield connection
        if connection:
            connection.commit()
    except sqlite3.Error:
        pass
    finally:
        if connection:
            connection.close()
