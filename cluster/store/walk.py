"""The files below a folder of somebody else's, and what is passed over there.

Linked folders are read like others, but each folder once, however many links lead to it: its own name comes before a
link's. What can't be read, or stands beside data without being any, is passed over with a reason; a walk never waits.

    hidden         .git, .DS_Store: a name that begins with a dot
    side_file      what editors, operating systems and other tools leave: notes.txt~, Thumbs.db, _SUCCESS
    dangling_link  a link to nothing, or in a circle
    special_file   a named pipe, a socket, a device
    unreadable     a file or a folder without permission
    read_already   a link to a folder that is read under another name
    odd_name       a name that is no UTF-8
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_SIDE = re.compile(
    r".*~|~\$.*|#.*#|.*\.sw[a-p]|Thumbs\.db|desktop\.ini|Icon\r|lost\+found|__MACOSX|__pycache__"
    r"|_SUCCESS|_metadata|_common_metadata|_temporary|_started_.*|_committed_.*",
    re.IGNORECASE,
)
_PROBE = "4913"  # a file that vim tries a folder with; a folder may well be called so


class Passed(NamedTuple):
    """Something that isn't read; a folder's name ends with a slash."""

    name: str
    reason: str


@dataclass
class Walk:
    """What is below a folder: names relative to it, as "a/b.txt", each with its stat."""

    files: list[tuple[str, os.stat_result]] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)


def beside_data(name: str) -> str | None:
    """The reason to pass over a file, or a folder ("name/"), by its relative name alone; None if there is none."""
    parts = name.split("/")
    for part in parts:
        if part.startswith("."):
            return "hidden"
        if _SIDE.fullmatch(part):
            return "side_file"
    return "side_file" if parts[-1] == _PROBE else None


def walk(folder: str, enter: Callable[[str], bool] = lambda name: True) -> Walk:
    """The files below a folder.

    Args:
        enter: whether to look into a folder below it, by its relative name.
    Raises:
        OSError: the folder itself can't be listed.
    """
    found, seen = Walk(), set[tuple[int, int]]()
    links: deque[str] = deque()  # to folders, which come after all folders that are no links
    todo: deque[str] = deque([""])
    while todo or links:
        at = (todo or links).popleft()
        path = Path(folder, at)
        try:
            info = path.stat()
            if (info.st_dev, info.st_ino) in seen:
                found.passed.append(Passed(at + "/", "read_already"))
                continue
            with os.scandir(path) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not at:
                raise
            found.passed.append(Passed(at + "/", _reason(error)))
            continue
        seen.add((info.st_dev, info.st_ino))
        for entry in inside:
            name = f"{at}/{entry.name}" if at else entry.name
            _take(entry, name, found, todo, links, enter)
    return found


def _take(
    entry: os.DirEntry[str],
    name: str,
    found: Walk,
    todo: deque[str],
    links: deque[str],
    enter: Callable[[str], bool],
) -> None:
    """One entry of a folder: a file, a folder to read later, or something that is passed over."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        found.passed.append(Passed(shown, "odd_name"))
        return
    try:
        is_folder = entry.is_dir()
        if is_folder and not enter(name):
            return
        end = "/" if is_folder else ""
        if reason := beside_data(entry.name + end):
            found.passed.append(Passed(name + end, reason))
            return
        if is_folder:
            (links if entry.is_symlink() else todo).append(name)
            return
        info = entry.stat()
    except OSError as error:
        found.passed.append(Passed(name, _reason(error)))
        return
    if not stat.S_ISREG(info.st_mode):
        found.passed.append(Passed(name, "special_file"))
    elif not os.access(entry.path, os.R_OK):
        found.passed.append(Passed(name, "unreadable"))
    else:
        found.files.append((name, info))


def _reason(error: OSError) -> str:
    return "dangling_link" if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR) else "unreadable"
