"""Commit, withdraw and delete of a folder, when something else happens in the middle."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path

import pytest
from tiny_artifact import FP, build, contents, manifest

from cluster.stage import Step, fingerprint, run_step
from cluster.store import folder as folder_module
from cluster.store import open_store
from cluster.store import s3 as s3_module
from cluster.store.artifact import Artifacts
from cluster.store.base import MANIFEST
from tests.cluster.tiny_stage import Config, stage

FILES = {"weights": "w" * 50, "deep/config.json": "{}"}
KEY = f"model/{FP}"

pytestmark = pytest.mark.usefixtures("fresh_process")


def test_who_comes_second_while_it_commits_leaves_the_first_alone_and_keeps_its_folder_as_it_was(store_url, tmp_path):
    store = open_store(store_url)
    there = [f"{KEY}/{MANIFEST}", f"{KEY}/other/weights"]

    def another_was_quicker(prefix: str) -> bytes:
        for key in reversed(there):
            store.write(key, b"the first's")
        return b"mine"

    folder = build(tmp_path, FILES)
    assert store.commit(folder, KEY, another_was_quicker) is False
    assert contents(folder) == FILES and not (folder / MANIFEST).exists()
    assert [e.key for e in store.list()] == there
    assert store.read(there[0]) == b"the first's"


def test_what_is_there_already_is_not_uploaded_again(s3_url, tmp_path, monkeypatch):
    store = open_store(f"{s3_url}/{uuid.uuid4().hex}")
    store.commit(build(tmp_path, FILES), KEY, lambda prefix: b"{}")
    monkeypatch.setattr(s3_module.S3Store, "upload", lambda *a: pytest.fail("uploaded"))
    assert store.commit(build(tmp_path, FILES), KEY, lambda prefix: b"{}") is False


def test_an_upload_that_somebody_cleared_away_is_done_again_before_its_manifest_is_shown(s3_url, tmp_path, monkeypatch):
    store = open_store(f"{s3_url}/{uuid.uuid4().hex}")
    real, lost = s3_module.S3Store.upload, []

    def cleared_once(self, path, key):
        if path.name == "weights" and not lost:
            lost.append(key)
        else:
            real(self, path, key)

    monkeypatch.setattr(s3_module.S3Store, "upload", cleared_once)
    assert store.commit(build(tmp_path, FILES), KEY, lambda prefix: prefix.encode())
    prefix = store.read(f"{KEY}/{MANIFEST}").decode()
    assert {e.key for e in store.list(KEY)} == {f"{KEY}/{MANIFEST}", *(prefix + name for name in FILES)}
    assert lost and not lost[0].startswith(prefix)


def test_a_wrong_manifest_never_takes_another_artifacts_files_away(s3_url, tmp_path):
    artifacts = Artifacts(f"{s3_url}/{uuid.uuid4().hex}")
    good = artifacts.publish(manifest(), build(tmp_path, FILES))
    wrong = manifest(fingerprint="wrong").model_copy(update={"prefix": good.manifest.prefix})
    artifacts.store.write(f"model/wrong/{MANIFEST}", wrong.model_dump_json().encode())
    artifacts.set_aside("model", "wrong", "a test")
    assert artifacts.find("model", "wrong") is None
    found = artifacts.find("model", FP)
    assert found is not None and contents(found.path()) == FILES


def test_a_deleted_folder_loses_its_manifest_first(s3_url, tmp_path, monkeypatch):
    """So nobody who looks in the middle reads it half."""
    artifacts = Artifacts(f"{s3_url}/{uuid.uuid4().hex}")
    artifacts.publish(manifest(), build(tmp_path, FILES))
    deleted: list[str] = []
    real = s3_module.S3Store._delete
    monkeypatch.setattr(s3_module.S3Store, "_delete", lambda self, key: (deleted.append(key), real(self, key))[1])
    artifacts.store.delete_prefix(KEY)
    assert deleted[0] == f"{KEY}/{MANIFEST}"
    assert list(artifacts.store.list()) == []


def test_what_is_half_written_is_in_no_listing(tmp_path):
    store = open_store(tmp_path)
    store.write("model/a", b"x")
    (tmp_path / "model" / ".tmp-file").write_text("half", encoding="utf-8")
    (tmp_path / "model" / ".tmp-folder").mkdir()
    (tmp_path / "model" / ".tmp-folder" / "weights").write_text("half", encoding="utf-8")
    assert [e.key for e in store.list()] == ["model/a"]
    assert list(store.folders("model")) == []


def test_a_download_that_was_killed_leaves_nothing_behind_once_the_copy_is_there(s3_url, tmp_path):
    url = f"{s3_url}/{uuid.uuid4().hex}"
    Artifacts(url, tmp_path / "writer").publish(manifest(), build(tmp_path, FILES))
    found = Artifacts(url, tmp_path / "reader").find("model", FP)
    assert found is not None
    store = open_store(url)
    copy = folder_module.cached_folder(store, found.manifest.prefix, found.manifest.created, tmp_path / "reader")
    half = copy.with_name(f"{copy.name}.part-killed")
    half.mkdir(parents=True)
    (half / "weights").write_text("half", encoding="utf-8")
    assert contents(found.path()) == FILES
    assert not half.exists()


def test_a_made_stage_leaves_no_folder_to_build_in(store_url):
    artifacts = Artifacts(store_url)
    step = Step("corpus", stage(), Config(text=uuid.uuid4().hex), {})
    run_step(step, artifacts)
    own = artifacts.store.folder(f"work/{fingerprint(step)}")
    temporary = Path(tempfile.gettempdir()) / f"tokenmill-{os.getuid()}" / "work" / fingerprint(step)
    assert not (own or temporary).exists()
