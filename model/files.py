"""Files that someone else made: read whole, or refused with what they seem to be and what to do.

A download that went wrong is of a few kinds: nothing, a part, a Git LFS pointer, a web page, another file. The first
bytes tell which, and a library's own message ("HeaderTooLarge") doesn't.
"""

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.errors import Missing, Newer, UserError

AGAIN = "Download it again"
MARKS = (  # first bytes: what it is, what to do
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Fetch it: git lfs pull, in its folder"),
    (b"PK\x03\x04", "a zip archive, as PyTorch's pickles are", "Convert it to safetensors, or unpack it"),
    (b"PK\x05\x06", "an empty zip archive", AGAIN),
    (b"\x80\x02", "a Python pickle, which can run any code", "Convert it to safetensors first"),
    (b"\x80\x04", "a Python pickle, which can run any code", "Convert it to safetensors first"),
    (b"\x1f\x8b", "a gzip archive", "Unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "Unpack it"),
    (b"GGUF", "a GGUF file", "Give it the ending .gguf, if it is the model"),
    (b"\xff\xfe", "text in UTF-16", "Save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "Save it as UTF-8"),
    (b"\xef\xbb\xbf", "text that begins with a byte order mark", "Save it as UTF-8 without one (BOM)"),
)
PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")
LONGEST = 600  # characters of a message, which may quote a value of the file
PANIC = "PanicException"  # of libraries in Rust: no Exception, and no class that can be imported
_NOTHING = object()


def broken(path: Path, wanted: str, why: object = "") -> UserError:
    """The error for a file that isn't `wanted` ("a safetensors file"): what it seems to be, and what to do."""
    what, advice = seems(path)
    reason = f" ({str(why).strip()[:200]})" if str(why).strip() else ""
    return UserError(f"{path} can't be read as {wanted}: it seems to be {what}{reason}. {advice}.")


def seems(path: Path) -> tuple[str, str]:
    """(what a file seems to be, what to do), by its kind and its first bytes."""
    if path.is_symlink() and not path.exists():
        return f"a link to {path.readlink()}, which isn't there", "Copy the file itself"
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return "a folder", "Give the file itself"
    if not stat.S_ISREG(mode):
        return "no regular file", "Give the file itself"
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if not size:
        return "an empty file", AGAIN
    if not head.strip(b"\0"):
        return "nothing but zeros, as a download that was broken off leaves", AGAIN
    if head.startswith(b"GGUF") and path.suffix == ".gguf":
        return f"a GGUF file, cut off or damaged: {size:,} bytes are there", AGAIN
    for mark, what, advice in MARKS:
        if head.startswith(mark):
            return what, advice
    if head.lstrip().lower().startswith(PAGES):
        return "a web page, such as a login or an error", f"{AGAIN}, with the right address or token"
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length < 1 << 30:
        return f"a safetensors file, cut off or damaged: {size:,} bytes are there", AGAIN
    if head.lstrip().startswith((b"{", b"[")):
        return f"JSON of {size:,} bytes, cut off or of another kind", AGAIN
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < len(head) - 3:
            return f"{size:,} bytes that are neither text nor of a known kind", AGAIN
    return f"{size:,} bytes of text", AGAIN


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Within this, where a file's values are read, what they make go wrong is a UserError that names the file.

    A value of another kind than was thought of ends in a TypeError or the like somewhere below, or in a panic of a
    library; so does a bug, so let nothing but the reading be within this.
    """
    try:
        yield
    except UserError as error:
        if str(path.parent) in str(error):
            raise
        text = str(error)
        text = f"{path}{text.removeprefix(path.name)}" if text.startswith(f"{path.name} ") else f"{path}: {text}"
        raise type(error)(text) from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise UserError(_short(f"{path} has a value that can't be used ({type(error).__name__}: {error}).")) from error
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        raise UserError(_short(f"{path} has a value that its library can't use ({error}).")) from error


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def given(path: Path) -> bool:
    """Whether something stands there; a link that leads nowhere counts, so that it isn't passed over."""
    return path.exists() or path.is_symlink()


def regular(path: Path, wanted: str) -> Path:
    """The path, of a file that can be opened. Raises UserError for a folder, a pipe, a link that leads nowhere."""
    if given(path) and not path.is_file():
        raise broken(path, wanted)
    return path


def check_format(found: object, newest: int, what: object) -> None:
    """Refuse what a later version has written: its number of format is greater than `newest`. None given is fine.

    Args:
        what: which file or thing it is, for the message.

    Raises:
        Newer: it is a later version's. UserError: it is no number of a format.
    """
    if found is None:
        return
    if type(found) is not int or found < 1:
        raise UserError(f"{what} says that its format is no whole number from 1 on. {AGAIN}, or make it again.")
    if found > newest:
        number = found if found < 1 << 64 else "beyond all numbers"
        raise Newer(
            f"{what} was written by a newer tokenmill (format {number}, this one reads up to {newest}): "
            "upgrade, or make it again with this one, in another place."
        )


def read_text(path: Path, wanted: str = "text in UTF-8") -> str:
    """Raises UserError for what isn't UTF-8, or begins with a byte order mark."""
    try:
        text = regular(path, wanted).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise broken(path, wanted, f"byte {error.start} is not UTF-8") from None
    if text.startswith("\ufeff"):
        raise broken(path, wanted)
    return text


def read_json(path: Path, missing: Any = _NOTHING) -> dict[str, Any]:
    """The object of a JSON file.

    Args:
        missing: what is returned where there is no such file.

    Raises:
        UserError: no JSON object is in it; Missing: no file, and no `missing`.
    """
    if not given(path):
        if missing is _NOTHING:
            raise Missing(f"{path} is not there.")
        return missing
    text = read_text(path, "a JSON object")
    try:
        found = json.loads(text)
    except RecursionError:
        raise broken(path, "a JSON object", "too deeply nested") from None
    except ValueError as error:
        raise broken(path, "a JSON object", error) from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object, {{…}}; it holds a {type(found).__name__}. {AGAIN}.")
    return found
