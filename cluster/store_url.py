"""Which folder a store's address names: a path, `file:///…`, or none of this machine (`s3://…`)."""

from __future__ import annotations

from pathlib import Path


def local_folder(url: str | Path) -> Path | None:
    """The folder; None: the store is elsewhere."""
    path = str(url).removeprefix("file://")
    return None if "://" in path else Path(path).expanduser().absolute()
