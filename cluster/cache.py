"""The folder for what can be made again: copies of remote files, digests, and an outbox beside a remote store."""

from __future__ import annotations

import functools
import getpass
import os
import tempfile
from pathlib import Path


def cache_root() -> Path:
    """$TOKENMILL_CACHE, else ~/.cache/tokenmill; where the home can't be written, a folder in the temporary one."""
    given = os.environ.get("TOKENMILL_CACHE")
    return Path(given).expanduser().absolute() if given else _in_home(os.environ.get("HOME", ""))


@functools.cache
def _in_home(_home: str) -> Path:
    try:
        folder = Path.home() / ".cache" / "tokenmill"
        if writable(folder):
            return folder
    except RuntimeError:  # no home at all
        pass
    return Path(tempfile.gettempdir()) / f"tokenmill-{user()}" / "cache"


def writable(folder: Path) -> bool:
    """Whether the folder is there, or can be made, and takes files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def user() -> str:
    """The user's name; the number, for a container's user without one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
