"""A name that stands in a file becomes a path inside a folder, or is refused: the one way from such a name to a path.

A manifest, an index, a tokenizer's list of files are written by whoever wrote them, and what they name is read, written
and deleted by whoever reads them. So a name leads down from its folder and nowhere else: by its letters on every system
(`a/b.txt`, never `../x`, `/x`, `C:x` or `a\\b`), and by the links that it meets on this one.
"""

import os
import re
import unicodedata
from pathlib import Path

from model.errors import UserError

LONGEST_PART, LONGEST = 255, 1024  # bytes: of a file's name, and of a key on S3
_DRIVE = re.compile(r"[A-Za-z]:")
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9]) *(\..*)?", re.IGNORECASE)  # Windows', whatever their ending
_UNSEEN = {"Cc", "Cs", "Zl", "Zp"}  # control characters, what no UTF-8 has, and two more ends of lines


class Outside(UserError):
    """A name in a file that may lead out of its folder, or that no file can have everywhere."""


def plain_name(name: object, by: Path | str = "") -> str:
    """`name` itself, if it is a relative path with `/` that stays in its folder. No file is looked at.

    Args:
        by: the file that says it, for the message.

    Raises:
        Outside: it is none; says what of it is wrong.
    """
    wrong = _wrong(name)
    if wrong:
        raise Outside(f"{_who(by)}names {_shown(name)}, which {wrong}. A name leads to a file inside the folder.")
    return str(name)


def inside(folder: Path, name: object, by: Path | str = "") -> Path:
    """The path of the file `name` in `folder`; links on its way may lead anywhere in it, and to its hub's blobs.

    Raises:
        Outside: as `plain_name`, and for links that lead elsewhere.
    """
    path = folder / plain_name(name, by)
    at = folder
    for part in str(name).split("/"):
        at = at / part
        if at.is_symlink():
            if not _leads_within(path, folder):
                says = f"{_who(by)}names {_shown(name)}: " if str(by) else ""
                raise Outside(f"{says}{_elsewhere(at)}")
            break
    return path


def check_links(folder: Path) -> None:
    """Refuse a folder of somebody else's with a link in it that leads elsewhere, but to its hub's blobs.

    A link to nothing is left to whoever reads it. Folders in it are not looked into: `inside` does where they are read.

    Raises:
        Outside: names the link.
    """
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        links = sorted(folder / entry.name for entry in entries if entry.is_symlink())
    for link in links:
        if link.exists() and not _leads_within(link, folder):
            raise Outside(_elsewhere(link))


def _leads_within(path: Path, folder: Path) -> bool:
    real, base = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return real.is_relative_to(base) or _is_blob(real, base)


def _elsewhere(link: Path) -> str:
    to = _shown(str(link.readlink()))
    return f"{link} is a link to {to}, outside of its folder: if the file belongs there, copy the file itself."


def _is_blob(real: Path, base: Path) -> bool:
    """Whether it is a file of the layout of a hub's cache: REPO/snapshots/REVISION/… -> REPO/blobs/DIGEST."""
    revisions = (at for at in (base, *base.parents) if at.parent.name == "snapshots")
    return any(real.parent == at.parent.parent / "blobs" and real.is_file() for at in revisions)


def _wrong(name: object) -> str | None:
    if not isinstance(name, str):
        return "is no text"
    if not name:
        return "is empty"
    if any(unicodedata.category(c) in _UNSEEN for c in name):
        return "has a character that no name has"
    if "\\" in name:
        return "has a backslash"
    if name.startswith("/") or _DRIVE.match(name):
        return "is an absolute path"
    parts = name.split("/")
    if any(not part.strip(" .") for part in parts):  # "", ".", "..", and what Windows takes for them
        return "has a part that is empty or made of dots"
    if any(_DEVICE.fullmatch(part) for part in parts):
        return "has a part that is a device on Windows"
    if len(name.encode()) > LONGEST or any(len(part.encode()) > LONGEST_PART for part in parts):
        return f"is longer than {LONGEST_PART} bytes, or {LONGEST} in all"
    return None


def _who(by: Path | str) -> str:
    return f"{by} " if str(by) else ""


def _shown(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 100 else text[:100] + "…"
