"""Artifacts: what a stage makes, immutable, in `STORE/KIND/FINGERPRINT/`, with a manifest that was written last.

    find ── manifest there? ─ no ──▶ None                     publish ── build folder, checksums
      │                                                           │
      └─ sizes right? ─ no ──▶ STORE/aside/KIND-FP-TIME/, None    └─ store.commit: all or nothing, one winner
      └─ first path() in a process: SHA-256 right? ─ no ──▶ aside, Corrupt

On a local store the files lie beside the manifest. On S3 they lie under KIND/FINGERPRINT/NONCE/, and the manifest, put
with If-None-Match, names the nonce: so racing writers never mix, whatever the server makes of the condition.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.store import NotFound, Store, StoreError, open_store
from cluster.store.base import ASIDE, MANIFEST, NewerInStore, join
from cluster.store.checkpoints import Checkpoints
from cluster.store.folder import Corrupt, adopt, cached_folder, describe, local_copy, missing
from cluster.store.manifest import WRONG, FileEntry, Files, Name, check_place, in_short, read_manifest
from model.inside import Outside, plain_name

FORMAT = 1
_log = logging.getLogger(__name__)


class InputRef(BaseModel):
    model_config = ConfigDict(frozen=True)

    kind: Name
    fingerprint: Name


class Manifest(BaseModel):
    """What an artifact is, where it came from, and what it cost. Times in seconds; created in UTC, ISO 8601."""

    format: int = Field(default=FORMAT, ge=1)
    kind: str
    stage: str
    stage_version: int
    fingerprint: str
    name: str = Field(default="", description="the step's name in the run that made it")
    config: dict[str, Any] = Field(default_factory=dict, description="the stage's whole config")
    identity: dict[str, Any] = Field(default_factory=dict, description="what of it is in the fingerprint")
    inputs: dict[str, InputRef] = Field(default_factory=dict)
    external: dict[str, str] = Field(default_factory=dict, description="digests of what came from outside the store")
    files: Files = Field(default_factory=dict)
    prefix: str = Field(default="", description="where the files lie in the store: this + their name")
    summary: dict[str, Any] = Field(default_factory=dict)
    code_version: str = ""
    packages: dict[str, str] = Field(default_factory=dict)
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    wall_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="of all attempts, see attempts.py")
    device_seconds: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="of all attempts, each one's wall seconds x its devices"
    )

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.fingerprint}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files.values())


@dataclass(frozen=True, eq=False)
class Artifact:
    """One artifact of a store. Pickles as its URL and its manifest, so that any worker can read it."""

    store_url: str
    manifest: Manifest
    cache: Path | None = None

    def __repr__(self) -> str:
        return f"Artifact({self.manifest.key} in {self.store_url})"

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def summary(self) -> dict[str, Any]:
        return self.manifest.summary

    def path(self, verify: bool = True) -> Path:
        """The folder on this machine; from S3 it is downloaded once, into the cache, whoever asks.

        Args:
            verify: check the SHA-256 of every file, on the first call in this process. Without, sizes only:
            for
                workers of a driver that has checked.
        Raises:
            Corrupt: the bytes are wrong; the artifact has been set aside.
        """
        return Artifacts(open_store(self.store_url), self.cache).path(self.manifest, verify)

    def read(self, name: str) -> bytes:
        """One small file, checked, without fetching the rest. Raises NotFound and Corrupt."""
        return Artifacts(open_store(self.store_url), self.cache).read(self.manifest, name)


class Artifacts:
    """The artifacts of one store.

    Args:
        store: a store, or its URL.
        cache: where copies of remote artifacts are kept; default: $TOKENMILL_CACHE or ~/.cache/tokenmill.
    """

    def __init__(self, store: Store | str | Path, cache: Path | None = None):
        self.store: Store = open_store(store) if isinstance(store, (str, Path)) else store
        self.cache = cache

    def manifest(self, kind: str, fingerprint: str) -> Manifest | None:
        """The manifest alone, without a look at the files; None if there is none that can be read.

        Raises:
            NewerInStore: a later version has written it.
        """
        try:
            return _parse(self.store.read(f"{kind}/{fingerprint}/{MANIFEST}"), kind, fingerprint)
        except (NotFound, *WRONG):
            return None

    def manifests(self, kind: str) -> Iterator[Manifest]:
        """All manifests of a kind that this version reads; a folder in the store need not be ours."""
        for fingerprint in self.store.folders(kind):
            with contextlib.suppress(Outside, NewerInStore):
                manifest = self.manifest(kind, plain_name(fingerprint))
                if manifest:
                    yield manifest

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """The artifact, if it is whole by its manifest and its sizes. What isn't is set aside, with the reason.

        Raises:
            NewerInStore: a later version has written it.
        """
        key = f"{kind}/{fingerprint}"
        data: bytes | None = None
        try:
            data = self.store.read(f"{key}/{MANIFEST}")
            manifest = _parse(data, kind, fingerprint)
            problem = missing(self.store, manifest.prefix, manifest.files)
        except NotFound:
            folder = self.store.folder(key)
            if folder is None or not folder.is_dir():
                return None  # on S3 files without a manifest may be an upload under way
            if (folder / MANIFEST).is_file():
                return self.find(kind, fingerprint)  # it was published between the two looks
            problem = "it has no manifest"
        except WRONG as error:
            problem = f"its manifest can't be read: {in_short(error)}"
        else:
            if problem is None:
                return Artifact(self.store.url, manifest, self.cache)
        self._set_aside(key, data, problem)
        return None

    def publish(self, manifest: Manifest, folder: Path) -> Artifact:
        """Make `folder` the artifact that `manifest` describes; its files, sizes and checksums are filled in here.

        `folder` is consumed. With two runs racing for one artifact both get the winner's.
        """
        manifest = manifest.model_copy(update={"files": describe(folder)})

        def finished(prefix: str) -> bytes:
            manifest.prefix = prefix
            return manifest.model_dump_json(indent=1).encode()

        for _ in range(5):
            if self.store.commit(folder, manifest.key, finished):
                if folder.exists():
                    adopt(
                        folder, cached_folder(self.store, manifest.prefix, manifest.created, self.cache)
                    )  # a remote store: spare the download
                return Artifact(self.store.url, manifest, self.cache)
            winner = self.find(manifest.kind, manifest.fingerprint)
            if winner:
                shutil.rmtree(folder, ignore_errors=True)
                return winner
        raise StoreError(f"Can't publish {manifest.key} in {self.store.url}: what is there is torn each time.")

    def set_aside(self, kind: str, fingerprint: str, reason: str) -> None:
        """Move the artifact out of the way, to STORE/aside/, with the reason beside it; nothing if there is none."""
        key = f"{kind}/{fingerprint}"
        data: bytes | None = None
        with contextlib.suppress(NotFound):
            data = self.store.read(f"{key}/{MANIFEST}")
        self._set_aside(key, data, reason)

    def _set_aside(self, key: str, seen: bytes | None, reason: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        target = f"{ASIDE}/{key.replace('/', '-')}-{stamp}-{secrets.token_hex(3)}"
        if self.store.withdraw(key, target, seen):
            self.store.write(f"{target}/reason.txt", (reason + "\n").encode())
            _log.warning("Set aside %s of %s: %s. It is in %s.", key, self.store.url, reason, target)

    def lineage(self, artifact: Artifact) -> list[Artifact]:
        """The artifact and all that it was made from, inputs first, each once. What has been deleted is left out."""
        order: dict[str, Artifact] = {}

        def visit(manifest: Manifest) -> None:
            if manifest.key in order:
                return
            for ref in manifest.inputs.values():
                source = self.manifest(ref.kind, ref.fingerprint)
                if source:
                    visit(source)
            order[manifest.key] = Artifact(self.store.url, manifest, self.cache)

        visit(artifact.manifest)
        return list(order.values())

    def checkpoints(self, fingerprint: str, nonce: str = "") -> Checkpoints:
        """The checkpoints of the run that is making the artifact `fingerprint`, by the lease `nonce`."""
        return Checkpoints(self.store, fingerprint, self.cache, nonce)

    def path(self, manifest: Manifest, verify: bool = True) -> Path:
        """See Artifact.path."""
        try:
            return local_copy(self.store, manifest.prefix, manifest.files, manifest.created, self.cache, verify)
        except Corrupt as error:
            self.set_aside(manifest.kind, manifest.fingerprint, str(error))
            raise Corrupt(
                f"{manifest.key} in {self.store.url} was damaged: {error}. It was set aside in {ASIDE}/; "
                f"run the same command again and it is made again."
            ) from None

    def read(self, manifest: Manifest, name: str) -> bytes:
        """See Artifact.read."""
        if name not in manifest.files:
            raise NotFound(f"{manifest.key} has no file {name}; it has {', '.join(sorted(manifest.files))}")
        data = self.store.read(join(manifest.prefix, name))
        if hashlib.sha256(data).hexdigest() != manifest.files[name].sha256:
            self.set_aside(manifest.kind, manifest.fingerprint, f"{name} has another checksum")
            raise Corrupt(f"{manifest.key} in {self.store.url}: {name} has another checksum. It was set aside.")
        return data


def _parse(data: bytes, kind: str, fingerprint: str) -> Manifest:
    """Raises NewerInStore for a later version's, one of WRONG for one that is none or names what it may not."""
    key = f"{kind}/{fingerprint}"
    manifest = read_manifest(Manifest, data, FORMAT, key)
    if manifest.key != key:
        raise Outside(f"it says that it is {manifest.key}")
    check_place(key, manifest.prefix)
    return manifest


__all__ = ["Artifact", "Artifacts", "Corrupt", "FileEntry", "InputRef", "Manifest"]
