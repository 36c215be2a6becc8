"""The folder for what can be made again: copies of remote files, digests, and an outbox beside a remote store.

And this user's folder in the machine's temporary one, where nothing else can be written.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import pwd
import stat
import tempfile
from pathlib import Path

from cluster.errors import UserError


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
    return own_temporary() / "cache"


def writable(folder: Path) -> bool:
    """Whether the folder is there, or can be made, and takes files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def own_temporary(under: Path | None = None) -> Path:
    """This user's folder in the machine's temporary one (or `under` another): nobody else reads or prepares it.

    Its name can be guessed, so that the next run finds it; hence it is taken only from this user.

    Raises:
        UserError: it is another user's, or others can write to it, or it is no folder.
    """
    folder = (under or Path(tempfile.gettempdir())) / f"tokenmill-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()  # of a link itself
    problem = None
    if not stat.S_ISDIR(found.st_mode):
        problem = "is no folder"
    elif found.st_uid != os.getuid():
        problem = f"belongs to {_name_of(found.st_uid)}"
    elif found.st_mode & 0o022:
        problem = "can be written by others"
    if problem:
        raise UserError(
            f"{folder} {problem}, so what is kept there could be read or changed by somebody else. "
            "Have it removed, or set TMPDIR to a folder of your own."
        )
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def _name_of(number: int) -> str:
    try:
        return f"the user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user number {number}"


def user() -> str:
    """The user's name; the number, for a container's user without one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
