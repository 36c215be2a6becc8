"""Data that others own: a file, a folder, a glob, or the same on S3; found, read as a stream, and digested.

    expand("web/*.jsonl.gz")   expand("s3://bucket/web/")   expand("s3://bucket/web/**/*.parquet")

The digest of a source is that of its files' names and contents (size and ETag on S3), wherever they lie.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from cluster.errors import UserError
from cluster.identity import canonical_json
from cluster.store.digest import remembered_sha256

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source. `name` is relative to the folder, or to a pattern's part before its wildcard."""

    url: str
    name: str
    size: int
    etag: str


def expand(url: str | Path) -> list[SourceFile]:
    """The files that a path, a folder, a glob (`**` too) or an s3:// URL means, in the order of their names.

    A path that exists is taken as it is, also if it has a `*` or a `[` in its name. Empty where nothing
    matches.

    Raises:
        ValueError: another scheme.
    """
    text = str(url)
    if text.startswith("s3://"):
        return _expand_s3(text)
    return _expand_local(_local(text))


def open_binary(url: str | Path) -> BinaryIO:
    """A buffered, seekable stream; from S3 it holds only its buffer, and reconnects where one breaks."""
    text = str(url)
    if text.startswith("s3://"):
        from cluster.store.s3_client import open_stream

        return open_stream(text)
    return cast(BinaryIO, Path(_local(text)).open("rb", buffering=1 << 20))


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
    if text.startswith("s3://"):
        return _digest([[f.name, f.size, f.etag] for f in files])
    return _digest([[f.name, d] for f, d in zip(files, remembered_sha256(Path(f.url) for f in files), strict=True)])


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _local(text: str) -> str:
    path = text.removeprefix("file://")
    if "://" in path:
        raise UserError(f"Can't read {text!r}: give a file, a folder, a glob or s3://bucket/prefix.")
    return str(Path(path).expanduser().absolute())


def _expand_local(path: str) -> list[SourceFile]:
    base = path
    if Path(path).is_file():
        base, found = str(Path(path).parent), [path]
    elif Path(path).is_dir():
        found = [f"{d}/{f}" for d, _, files in os.walk(path) for f in files]
    else:
        base = _before_wildcard(path)
        found = [f for f in glob.glob(path, recursive=True) if Path(f).is_file()]  # noqa: PTH207 (a whole pattern)
    files = []
    for file in found:
        stat = Path(file).stat()
        name = os.path.relpath(file, base).replace(os.sep, "/")
        files.append(SourceFile(file, name, stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}"))
    return sorted(files, key=lambda f: f.name)


def _expand_s3(url: str) -> list[SourceFile]:
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
    files = [
        SourceFile(f"s3://{bucket}/{o.key}", o.key[len(base) :].lstrip("/"), o.size, o.etag.strip('"')) for o in found
    ]
    return sorted(files, key=lambda f: f.name)


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
