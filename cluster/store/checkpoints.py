"""Checkpoints of a run that is under way: `STORE/work/FINGERPRINT/checkpoints/step-000000001000/`.

Each is a small folder published like an artifact, manifest last, so a kill in the middle of a save leaves the
one before it as the newest. Any process of the run may read and write them; they pickle as the store's URL.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, Field

from cluster.store import NotFound, Store, StoreError, open_store
from cluster.store.base import ASIDE, MANIFEST, WORK, NewerInStore, join
from cluster.store.folder import Corrupt, adopt, cached_folder, describe, local_copy, missing
from cluster.store.lease_place import holds
from cluster.store.manifest import WRONG, Files, check_place, in_short, read_manifest
from model.inside import Outside

FORMAT = 1
_NAME, _STEP = "step-{:012d}", re.compile(r"step-([0-9]{12})")
_log = logging.getLogger(__name__)


class CheckpointManifest(BaseModel):
    format: int = Field(default=FORMAT, ge=1)
    step: int
    files: Files
    prefix: str = ""
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat())


@dataclass(frozen=True)
class _Seen:
    """A checkpoint at one look: its manifest as it lies there, and read if all is well; else what is wrong."""

    data: bytes | None
    manifest: CheckpointManifest | None
    problem: str = ""


class Checkpoints:
    """The checkpoints of one artifact in the making.

    Args:
        store: a store, or its URL.
        fingerprint: of the artifact.
        cache: see Artifacts.
        nonce: of the lease by which they are written (see lease.py): once another run has taken over, this one
            neither saves nor deletes. Without one this is not asked.
    """

    def __init__(self, store: Store | str, fingerprint: str, cache: Path | None = None, nonce: str = ""):
        self.store: Store = open_store(store) if isinstance(store, str) else store
        self.fingerprint = fingerprint
        self.cache = cache
        self.nonce = nonce
        self.key = f"{WORK}/{fingerprint}/checkpoints"

    def save(self, step: int, folder: Path) -> None:
        """Publish `folder` as the checkpoint of `step`; it is consumed.

        A step that is there already, as after a resume, stays if it is the same, and else gives way to the
        new one.
        """
        if self._lost():
            shutil.rmtree(folder, ignore_errors=True)
            return
        key = f"{self.key}/{_NAME.format(step)}"
        manifest = CheckpointManifest(step=step, files=describe(folder))

        def finished(prefix: str) -> bytes:
            manifest.prefix = prefix
            return manifest.model_dump_json(indent=1).encode()

        for _ in range(5):
            if self.store.commit(folder, key, finished):
                if folder.exists():
                    adopt(folder, cached_folder(self.store, manifest.prefix, manifest.created, self.cache))
                return
            old = self._whole(step)
            if (old and old.files == manifest.files) or self._lost():
                shutil.rmtree(folder, ignore_errors=True)
                return
            self.store.delete_prefix(key)
        raise StoreError(f"Can't save the checkpoint of step {step} at {key} in {self.store.url}.")

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, by their folders' names, oldest first. Not all need be whole."""
        numbers = []
        for name in self.store.folders(self.key):
            if match := _STEP.fullmatch(name):
                numbers.append(int(match[1]))
        return sorted(numbers)

    def latest(self) -> tuple[int, Path] | None:
        """The newest whole checkpoint, as a folder of this machine, checked by checksum; None if there is none.

        A damaged one is set aside, which is said in the log, and the one before it is taken; see `aside`.

        Raises:
            NewerInStore: a later version has written the newest one.
        """
        for step in reversed(self.steps()):
            seen = self._look(step)
            if seen.manifest is None or seen.problem:
                self._set_aside(step, seen)
                continue
            files, prefix, created = seen.manifest.files, seen.manifest.prefix, seen.manifest.created
            try:
                return step, local_copy(self.store, prefix, files, created, self.cache, verify=True)
            except Corrupt as error:
                self._set_aside(step, replace(seen, problem=str(error)))
        return None

    def aside(self) -> list[str]:
        """What was set aside of this run's checkpoints, and why: "step 20: model has 3 bytes, not 8"."""
        found = []
        for name in self.store.folders(ASIDE):
            if match := re.fullmatch(rf"checkpoint-{re.escape(self.fingerprint)}-([0-9]+)-[0-9a-f]+", name):
                with contextlib.suppress(NotFound):
                    reason = self.store.read(f"{ASIDE}/{name}/reason.txt").decode("utf-8", "replace").strip()
                    found.append((int(match[1]), reason))
        return [f"step {step}: {reason}" for step, reason in sorted(found)]

    def prune(self, keep: int = 2) -> None:
        """Delete all but the newest `keep` whole ones."""
        if keep < 1:
            raise ValueError(f"keep={keep}: at least one checkpoint must stay; use clear() to delete all.")
        if self._lost():
            return
        whole = [s for s in self.steps() if self._whole(s)]
        for step in whole[:-keep]:
            self._delete(step)

    def clear(self) -> None:
        """Delete all of them."""
        if self._lost():
            return
        for step in self.steps():
            self._delete(step)
        self.store.delete_prefix(self.key)

    def _lost(self) -> bool:
        """Whether they are another run's by now."""
        lost = bool(self.nonce) and not holds(self.store, self.fingerprint, self.nonce)
        if lost:
            _log.warning("Left the checkpoints of %s alone: another run has taken over.", self.fingerprint)
        return lost

    def _look(self, step: int) -> _Seen:
        """A checkpoint by its manifest and its sizes. Raises NewerInStore."""
        key = f"{self.key}/{_NAME.format(step)}"
        try:
            data = self.store.read(f"{key}/{MANIFEST}")
        except NotFound:
            return _Seen(None, None, "it has no manifest: it was never finished")
        try:
            manifest = read_manifest(CheckpointManifest, data, FORMAT, key)
            check_place(key, manifest.prefix)
            if manifest.step != step:
                raise Outside(f"it says that it is of step {manifest.step}")
        except WRONG as error:
            return _Seen(data, None, f"its manifest can't be read: {in_short(error)}")
        return _Seen(data, manifest, missing(self.store, manifest.prefix, manifest.files) or "")

    def _whole(self, step: int) -> CheckpointManifest | None:
        seen = self._look(step)
        return None if seen.problem else seen.manifest

    def _delete(self, step: int) -> None:
        manifest = None
        with contextlib.suppress(NewerInStore):
            manifest = self._look(step).manifest
        if manifest and self.store.folder(self.key) is None:
            copy = cached_folder(self.store, manifest.prefix, manifest.created, self.cache)
            shutil.rmtree(copy, ignore_errors=True)
            copy.with_name(copy.name + ".lock").unlink(missing_ok=True)
        self.store.delete_prefix(join(self.key, _NAME.format(step)))

    def _set_aside(self, step: int, seen: _Seen) -> None:
        key = f"{self.key}/{_NAME.format(step)}"
        target = f"{ASIDE}/checkpoint-{self.fingerprint}-{step}-{secrets.token_hex(3)}"
        if self.store.withdraw(key, target, seen.data):
            self.store.write(f"{target}/reason.txt", (seen.problem + "\n").encode())
            _log.warning("Set aside the checkpoint of step %d: %s. It is in %s.", step, seen.problem, target)
        else:  # on S3, where files without a manifest may be an upload under way; or another was quicker
            _log.warning("Passed over the checkpoint of step %d: %s.", step, seen.problem)
