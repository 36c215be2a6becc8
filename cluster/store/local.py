"""A store in a folder of this machine, or of a file system that all machines share.

Nothing is ever written at its final name: a file or a folder is built beside it, synced to the disk, and renamed, which
POSIX does atomically. Two renames of a folder onto one name have one winner; the other sees ENOTEMPTY.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from cluster.store.base import MANIFEST, Entry, NotFound, check_key, files_in, join

TEMPORARY = ".tmp-"  # names that a reader never sees
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


class LocalStore:
    """Files under one folder. The folder is made at the first write.

    Args:
        root: the folder; `~` is expanded.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser().absolute()
        self.url = str(self.root)

    def __repr__(self) -> str:
        return f"LocalStore({self.url!r})"

    def _path(self, key: str) -> Path:
        return self.root / check_key(key) if key else self.root

    def try_writing(self) -> None:
        with _beside(self.root / "try") as temporary:
            temporary.write_bytes(b"\n" * 4096)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        top = self._path(prefix)
        found: list[Entry] = []
        for base, folders, files in os.walk(top):
            folders[:] = [f for f in folders if not f.startswith(TEMPORARY)]
            for name in files:
                if name.startswith(TEMPORARY):
                    continue
                path = Path(base, name)
                with contextlib.suppress(FileNotFoundError):  # deleted since the walk saw it
                    info = path.stat()
                    if stat.S_ISREG(info.st_mode):
                        found.append(_entry(path.relative_to(self.root).as_posix(), info))
        yield from sorted(found, key=lambda e: e.key)

    def folders(self, prefix: str = "") -> Iterator[str]:
        top = self._path(prefix)
        if top.is_dir():
            yield from sorted(p.name for p in top.iterdir() if p.is_dir() and not p.name.startswith(TEMPORARY))

    def stat(self, key: str) -> Entry | None:
        path = self._path(key)
        try:
            return _entry(key, path.stat()) if path.is_file() else None
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, key: str) -> bytes:
        try:
            with opened(self._path(key)) as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"{self.url} has no {key}") from None

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        path = self._path(key)
        with _beside(path) as temporary:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if if_absent:
                try:
                    os.link(temporary, path)  # unlike rename, a link refuses a name that is taken
                except FileExistsError:
                    return False
            else:
                temporary.replace(path)
        _sync_folder(path.parent)
        return True

    def upload(self, path: Path, key: str) -> None:
        target = self._path(key)
        with _beside(target) as temporary:
            shutil.copyfile(path, temporary)
            _sync_file(temporary)
            temporary.replace(target)
        _sync_folder(target.parent)

    def download(self, key: str, path: Path) -> None:
        source = self._path(key)
        if not source.is_file():
            raise NotFound(f"{self.url} has no {key}")
        with _beside(path) as temporary:
            shutil.copyfile(source, temporary)
            temporary.replace(path)

    def delete_prefix(self, prefix: str) -> None:
        path = self._path(prefix)
        if path == self.root:
            raise ValueError("An empty prefix would delete the whole store.")
        if path.is_dir():
            # Renamed first, so that no reader ever sees a half-deleted folder.
            doomed = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
            with contextlib.suppress(FileNotFoundError):
                path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def move_prefix(self, src: str, dst: str) -> None:
        source, target = self._path(src), self._path(dst)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise ValueError(f"Can't move {src} to {dst}: it exists in {self.url}.")
        try:
            source.rename(target)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"{self.url} has no {src}") from None
        _sync_folder(target.parent)

    def commit(self, folder: Path, key: str, manifest: Callable[[str], bytes]) -> bool:
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            return False
        for name in files_in(folder):
            _sync_file(folder / name)
        (folder / MANIFEST).write_bytes(manifest(join(key) + "/"))
        _sync_file(folder / MANIFEST)
        _sync_folder(folder)
        try:
            _rename_folder(folder, target)
        except BaseException as error:
            (folder / MANIFEST).unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in _TAKEN:
                return False
            raise
        _sync_folder(target.parent)
        return True

    def withdraw(self, key: str, dst: str, seen: bytes | None) -> bool:
        target = self._path(dst)
        try:
            self.move_prefix(key, dst)
        except NotFound:
            return False  # another process was quicker
        moved = (target / MANIFEST).read_bytes() if (target / MANIFEST).is_file() else None
        if moved == seen:
            return True
        with contextlib.suppress(OSError):  # a newer one, by mistake: put it back, unless its place is taken again
            target.rename(self._path(key))
        return False

    def folder(self, key: str) -> Path | None:
        return self._path(key)


def opened(path: Path) -> BinaryIO:
    """A file, open for reading.

    Raises:
        FileNotFoundError: none is there, but perhaps a pipe or the like, at which a reader would wait for ever.
        IsADirectoryError: a folder is there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise FileNotFoundError(errno.ENOENT, "no file", str(path)) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    kind, number = (IsADirectoryError, errno.EISDIR) if stat.S_ISDIR(mode) else (FileNotFoundError, errno.ENOENT)
    raise kind(number, "no file", str(path))


def _entry(key: str, stat: os.stat_result) -> Entry:
    return Entry(key, stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}")


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`, gone at the end unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """Names are data too: without this a rename may be lost with the power."""
    with contextlib.suppress(OSError):  # some network file systems refuse it
        _sync_file(path)


def _rename_folder(folder: Path, target: Path) -> None:
    """Rename, also from another file system: by way of a copy beside the target."""
    try:
        folder.rename(target)
        return
    except FileNotFoundError:  # an empty parent was cleared away meanwhile
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    copy = target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        shutil.copytree(folder, copy)
        for name in files_in(copy):
            _sync_file(copy / name)
        copy.rename(target)
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
