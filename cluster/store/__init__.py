"""Where artifacts are kept, and where sources are read from: a folder, or S3, with the same behaviour.

local.py and s3.py each implement base.Store; source.py reads data that others own.
"""

from __future__ import annotations

from pathlib import Path

from cluster.errors import UserError
from cluster.store.base import Entry, NotFound, Store, StoreError
from cluster.store_url import local_folder

__all__ = ["Entry", "NotFound", "Store", "StoreError", "open_store"]


def open_store(url: str | Path) -> Store:
    """The store at a folder's path, `file:///…`, or `s3://bucket/prefix` (credentials and endpoint: AWS_*).

    Raises:
        ValueError: another scheme.
    """
    text = str(url)
    if text.startswith("s3://"):
        from cluster.store.s3 import S3Store  # boto3 takes a third of a second to import

        return S3Store(text)
    folder = local_folder(text)
    if folder is None:
        raise UserError(f"Can't open the store {url!r}: give a folder or s3://bucket/prefix.")
    from cluster.store.local import LocalStore

    return LocalStore(folder)
