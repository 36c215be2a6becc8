"""Small folders to publish, and a process that is killed while it does."""

from __future__ import annotations

import uuid
from pathlib import Path

from cluster.store.artifact import Manifest
from cluster.store.base import MANIFEST

FP = "0123456789abcdef0123"


def manifest(**kw) -> Manifest:
    return Manifest(**{"kind": "model", "stage": "pretrain", "stage_version": 1, "fingerprint": FP, **kw})


def build(tmp_path: Path, files: dict[str, str]) -> Path:
    folder = tmp_path / f"build-{uuid.uuid4().hex[:8]}"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8")
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MANIFEST
    }


KILLED = """
import os, signal, sys
from pathlib import Path
from cluster.store.artifact import Artifacts, Manifest
from cluster.store import local, s3
def die(*a, **kw): os.kill(os.getpid(), signal.SIGKILL)
where = {where!r}
if where == "before the manifest":
    local._rename_folder = die
    real = s3.S3Store.write
    s3.S3Store.write = lambda self, key, *a, **kw: (die if key.endswith("manifest.json") else real)(self, key, *a, **kw)
else:
    local._sync_file = die
    real, count = s3.S3Store.upload, []
    def upload(self, path, key):
        count.append(1)
        return die() if len(count) == 2 else real(self, path, key)
    s3.S3Store.upload = upload
Artifacts({url!r}).publish(Manifest.model_validate_json({manifest!r}), Path({folder!r}))
"""
