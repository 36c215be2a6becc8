"""Data that others own: a file, a folder, a glob, or the same on S3; found, read as a stream, and digested.

    expand("web/*.jsonl.gz")   expand("s3://bucket/web/")   expand("s3://bucket/web/**/*.parquet")

The digest of a source is that of its files' names and contents (size and ETag on S3), wherever they lie. Of a folder or
a pattern, what is no data or can't be read is passed over, see cluster/store/walk.py; a path of one file is that file.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from cluster.errors import UserError, named_by_a_person
from cluster.identity import canonical_json
from cluster.store.digest import remembered_sha256
from cluster.store.walk import Passed, beside_data, walk

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source. `name` is relative to the folder, or to a pattern's part before its wildcard."""

    url: str
    name: str
    size: int
    etag: str


class Found(NamedTuple):
    """What a source's path means: its files, and what was passed over, both in the order of their names."""

    files: list[SourceFile]
    passed: list[Passed]


def expand(url: str | Path) -> list[SourceFile]:
    """The files that a path, a folder, a glob (`**` too) or an s3:// URL means, in the order of their names.

    A path that exists is taken as it is, also if it has a `*` or a `[` in its name. Empty where nothing
    matches.

    Raises:
        UserError: another scheme; a path of something that isn't a file, or may not be read.
    """
    return look(url).files


def look(url: str | Path) -> Found:
    """As `expand`, and what is passed over."""
    text = str(url)
    files, passed = _look_s3(text) if text.startswith("s3://") else _look_local(_local(text))
    return Found(sorted(files, key=lambda f: f.name), sorted(passed))


def open_binary(url: str | Path) -> BinaryIO:
    """A buffered, seekable stream; from S3 it holds only its buffer, and reconnects where one breaks."""
    text = str(url)
    if text.startswith("s3://"):
        from cluster.store.s3_client import open_stream

        return open_stream(text)
    return cast(BinaryIO, Path(_local(text)).open("rb", buffering=1 << 20))


def located(url: str) -> str:
    """The same data, named so that a process in another folder finds it: a relative path becomes an absolute one."""
    return url if url.startswith(("generated://", "s3://")) else _local(url)


def digest_source(url: str | Path) -> str:
    """A digest of what is there now: it changes when a file's name or content does.

    `generated://…` is its own content: what it means is decided by the stage's version.

    Raises:
        ValueError: nothing is there.
    """
    text = str(url)
    if text.startswith("generated://"):
        return _digest(text)
    files = expand(text)
    if not files:
        raise UserError(f"Nothing is at {text!r}: give a file, a folder, a glob or s3://bucket/prefix.")
    return digest_files(files)


def digest_files(files: Sequence[SourceFile]) -> str:
    """A digest of these files' names and contents."""
    if files and files[0].url.startswith("s3://"):
        return _digest([[f.name, f.size, f.etag] for f in files])
    with named_by_a_person(""):
        digests = remembered_sha256(Path(f.url) for f in files)
    return _digest([[f.name, d] for f, d in zip(files, digests, strict=True)])


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _local(text: str) -> str:
    path = text.removeprefix("file://")
    if "://" in path:
        raise UserError(f"Can't read {text!r}: give a file, a folder, a glob or s3://bucket/prefix.")
    return str(Path(path).expanduser().absolute())


def _look_local(path: str) -> Found:
    if Path(path).is_dir():
        return _below(path, lambda name: True)
    if os.path.lexists(path):
        return Found([_one(path)], [])
    base = _before_wildcard(path)
    if not _MAGIC.search(path) or not Path(base or "/").is_dir():
        return Found([], [])
    relative = path[len(base) :].lstrip("/")
    matches, enter = _pattern(relative).fullmatch, _folders(relative)
    return _below(base or "/", lambda name: bool(matches(name)), enter)


def _below(folder: str, wanted: Callable[[str], bool], enter: Callable[[str], bool] = lambda name: True) -> Found:
    with named_by_a_person(folder):
        found = walk(folder, enter)
    files = [
        SourceFile(f"{folder.rstrip('/')}/{name}", name, info.st_size, f"{info.st_size}-{info.st_mtime_ns}")
        for name, info in found.files
        if wanted(name)
    ]
    return Found(files, [one for one in found.passed if wanted(one.name) or one.name.endswith("/")])


def _one(path: str) -> SourceFile:
    """The file at a path that a person named.

    Raises:
        UserError: it is a link to nothing, a named pipe or the like, or may not be read.
    """
    try:
        info = Path(path).stat()
    except OSError as error:
        to = f" It is a link to {str(Path(path).readlink())!r}." if Path(path).is_symlink() else ""
        raise UserError(f"{path}: {error.strerror}.{to}") from None
    if not stat.S_ISREG(info.st_mode):
        raise UserError(
            f"{path} is {_kind(info.st_mode)}, which can be read once only and may never end; a source is read several "
            "times: save it to a file, and give that."
        )
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: Permission denied.")
    return SourceFile(path, Path(path).name, info.st_size, f"{info.st_size}-{info.st_mtime_ns}")


def _kind(mode: int) -> str:
    return "a named pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def _look_s3(url: str) -> Found:
    from cluster.store.s3_client import list_objects, split_url

    bucket, key = split_url(url)
    exact = [o for o in list_objects(bucket, key) if o.key == key] if key and not key.endswith("/") else []
    if exact:
        base, found = key.rpartition("/")[0], exact
    elif _MAGIC.search(key):
        base = _before_wildcard(key)
        pattern = _pattern(key)
        found = [o for o in list_objects(bucket, base + "/" if base else "") if pattern.fullmatch(o.key)]
    else:
        base = key.rstrip("/")
        found = [o for o in list_objects(bucket, base + "/" if base else "") if not o.key.endswith("/")]
    files, passed = [], []
    for one in found:
        name = one.key[len(base) :].lstrip("/")
        if not exact and (reason := beside_data(name)):
            passed.append(Passed(name, reason))
        else:
            files.append(SourceFile(f"s3://{bucket}/{one.key}", name, one.size, one.etag.strip('"')))
    return Found(files, passed)


def _before_wildcard(path: str) -> str:
    """The folder above the first part with a wildcard."""
    kept = []
    for part in path.split("/"):
        if _MAGIC.search(part):
            break
        kept.append(part)
    else:
        kept = kept[:-1]
    return "/".join(kept)


def _folders(glob_text: str) -> Callable[[str], bool]:
    """Whether a glob may match something below a folder, by the folder's name."""
    *folders, _ = parts = glob_text.split("/")
    deep = "**" in parts
    above = [_pattern(part) for part in (folders[: folders.index("**")] if "**" in folders else folders)]

    def enter(name: str) -> bool:
        given = name.split("/")
        fits = all(one.fullmatch(part) for one, part in zip(above, given, strict=False))
        return fits and (deep or len(given) <= len(folders))

    return enter


def _pattern(glob_text: str) -> re.Pattern[str]:
    """A glob over keys, as glob.iglob reads it: `*` stays within a part, `**` as a whole part spans them."""
    import fnmatch

    out = []
    for part in glob_text.split("/"):
        if part == "**":
            out.append("(?:[^/]+/)*")
        else:
            body = fnmatch.translate(part).removeprefix("(?s:").removesuffix(r")\Z").removesuffix(r")\z")
            out.append(body.replace(".*", "[^/]*").replace("(?>", "(?:") + "/")
    text = "".join(out)
    return re.compile(text.removesuffix("/") if not glob_text.endswith("**") else text + "[^/]+")
