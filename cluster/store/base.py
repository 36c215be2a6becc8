"""What a store is: bytes under keys, and folders that appear whole or not at all.

Keys are relative POSIX paths (`model/4f…/config.json`); a prefix names a folder, so `list("model/4f")` never returns
`model/4fa…`. Both stores keep one promise that the rest is built on: after `commit` of a folder, either all its files
can be read at its place, with its manifest, or nothing can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from model.errors import Newer
from model.inside import Outside, plain_name

WORK = "work"  # the folder of what is under way: STORE/work/FINGERPRINT/…
ASIDE = "aside"  # and of what was damaged or replaced
MANIFEST = "manifest.json"  # its presence is what makes a folder an artifact: it is always written last


class NotFound(KeyError):
    """No such key in the store."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "not found"


class StoreError(RuntimeError):
    """The store could not do what it was asked, after its retries: what, where, and why."""


class NewerInStore(StoreError, Newer):
    """What lies in the store was written by a later version, in a format that this one doesn't know."""


@dataclass(frozen=True)
class Entry:
    """One file of a store. `etag` changes when the content does: S3's own, or size-mtime for a local file."""

    key: str
    size: int
    etag: str


class Store(Protocol):
    """A place for files. Instances may be used from many threads, and pickle as their URL."""

    url: str  # "/abs/dir" or "s3://bucket/prefix"

    def try_writing(self) -> None:
        """Find out whether the store takes data, where that costs next to nothing. Raises OSError."""
        ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All files under the folder `prefix`, in the order of their keys."""
        ...

    def folders(self, prefix: str = "") -> Iterator[str]:
        """The names of the folders directly under the folder `prefix`."""
        ...

    def stat(self, key: str) -> Entry | None: ...

    def read(self, key: str) -> bytes:
        """The whole content. Raises NotFound."""
        ...

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Put `data` at `key` atomically. False: `if_absent` was asked and something was there already."""
        ...

    def upload(self, path: Path, key: str) -> None: ...

    def download(self, key: str, path: Path) -> None:
        """Copy to the local file `path`, which appears whole or not at all. Raises NotFound."""
        ...

    def delete_prefix(self, prefix: str) -> None:
        """Delete the folder `prefix`, or the file of that name; where there is none, nothing."""
        ...

    def move_prefix(self, src: str, dst: str) -> None:
        """Move the folder `src` to `dst`, which must not exist. Raises NotFound."""
        ...

    def commit(self, folder: Path, key: str, manifest: Callable[[str], bytes]) -> bool:
        """Make the local `folder` appear at `key`, whole, with its manifest last; `folder` may be moved away.

        Args:
            manifest: prefix -> the content of `key`/manifest.json; the files are then at prefix + their name.
        Returns:
            False: something is at `key` already; it is untouched and `folder` is left to the caller.
        """
        ...

    def withdraw(self, key: str, dst: str, seen: bytes | None) -> bool:
        """Take what was committed at `key` away to the folder `dst`, so that `key` is free again.

        Args:
            seen: the manifest that the caller read there, None for none. Where another process has put a new
                one in the meantime, it stays and the answer is False.
        """
        ...

    def folder(self, key: str) -> Path | None:
        """The folder at `key` on this machine's file system, where this store is one; else None."""
        ...


def check_key(key: str) -> str:
    """`key` itself, if it stays within the store. A name out of a file is refused before it is a part of a key."""
    try:
        return plain_name(key) if key else key
    except Outside as error:
        raise ValueError(f"Not a store key: {error}") from None


def join(*parts: str) -> str:
    """Keys joined with one slash; empty parts vanish."""
    return "/".join(p.strip("/") for p in parts if p.strip("/"))


def files_in(folder: Path) -> list[str]:
    """Names of all files below `folder`, relative and sorted; links to folders are not followed."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
