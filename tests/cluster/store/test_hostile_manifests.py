"""What a shared store's manifests may say: a name or a place that leads elsewhere is damage, a later format is not."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tiny_artifact import FP, build, contents, manifest

from cluster.stage import Summary
from cluster.store import StoreError
from cluster.store.artifact import Artifacts, Corrupt
from cluster.store.base import MANIFEST
from cluster.store.lease_place import Owner, _parse
from cluster.train.summary import TrainingSummary
from model.errors import UserError

pytestmark = pytest.mark.usefixtures("fresh_process")
KEY = f"model/{FP}"
LIES = {
    "above": {"files": {"../../x": {"size": 1, "sha256": ""}}},
    "absolute": {"files": {"/tmp/x": {"size": 1, "sha256": ""}}},
    "escape": {"files": {"a\u001b[2J": {"size": 1, "sha256": ""}}},
    "empty": {"files": {"": {"size": 1, "sha256": ""}}},
    "place above": {"prefix": f"{KEY}/../../"},
    "place absolute": {"prefix": "/etc/"},
    "no place": {"prefix": ""},
    "another's place": {"prefix": "tokens/aaaa/"},
    "a longer name": {"prefix": f"{KEY}0/"},
    "input": {"inputs": {"x": {"kind": "../..", "fingerprint": "x"}}},
    "size": {"files": {"w": {"size": -1, "sha256": ""}}},
    "format": {"format": 0},
    "kind": {"kind": "tokens"},
}


def say(artifacts: Artifacts, key: str, **more: object) -> None:
    text = json.loads(artifacts.store.read(f"{key}/{MANIFEST}")) | more
    artifacts.store.write(f"{key}/{MANIFEST}", json.dumps(text).encode())


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_names_what_it_may_not_is_set_aside_and_made_again(lie, store_url, tmp_path, caplog):
    artifacts = Artifacts(store_url, tmp_path / "cache")
    artifacts.publish(manifest(), build(tmp_path, {"w": "w"}))
    say(artifacts, KEY, **LIES[lie])
    assert artifacts.manifest("model", FP) is None and list(artifacts.manifests("model")) == []
    with caplog.at_level(logging.WARNING):
        assert artifacts.find("model", FP) is None
    assert "manifest can't be read" in caplog.text and KEY in caplog.text
    assert [e for e in artifacts.store.list("aside") if e.key.endswith("reason.txt")]
    made = artifacts.publish(manifest(), build(tmp_path, {"w": "again"}))
    assert contents(made.path()) == {"w": "again"}


def test_a_link_in_an_artifact_that_leads_elsewhere_is_damage(tmp_path):
    artifacts = Artifacts(tmp_path / "store")
    made = artifacts.publish(manifest(), build(tmp_path, {"w": "w"}))
    (tmp_path / "w").write_text("w", encoding="utf-8")
    (tmp_path / "store" / KEY / "w").unlink()
    (tmp_path / "store" / KEY / "w").symlink_to(tmp_path / "w")
    with pytest.raises(Corrupt, match="is a link to"):
        made.path()
    assert artifacts.find("model", FP) is None


def test_a_store_of_which_a_part_lies_on_another_disk_works(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "model").symlink_to(tmp_path / "disk")
    artifacts = Artifacts(tmp_path / "store")
    artifacts.publish(manifest(), build(tmp_path, {"ü b/w.x": "w"}))
    found = artifacts.find("model", FP)
    assert found is not None and contents(found.path()) == {"ü b/w.x": "w"}


def test_folders_of_others_in_the_store_are_no_manifests(tmp_path):
    artifacts = Artifacts(tmp_path / "store")
    artifacts.publish(manifest(), build(tmp_path, {"w": "w"}))
    for name in ("a\\b", "new\nline", "...", "x" * 200):
        (tmp_path / "store" / "model" / name).mkdir()
    assert [m.fingerprint for m in artifacts.manifests("model")] == [FP]


@pytest.mark.parametrize("more", [{}, {"files": [], "prefix": 3, "step": None}])
@pytest.mark.parametrize("number", [2, 10**30])
def test_what_a_later_version_wrote_is_refused_and_left_alone(store_url, tmp_path, number, more):
    artifacts = Artifacts(store_url, tmp_path / "cache")
    artifacts.publish(manifest(), build(tmp_path, {"w": "w"}))
    checkpoints = artifacts.checkpoints(FP)
    checkpoints.save(1, build(tmp_path, {"w": "w"}))
    say(artifacts, KEY, format=number, **more)
    say(artifacts, f"{checkpoints.key}/step-{1:012d}", format=number, **more)
    for look in (lambda: artifacts.find("model", FP), lambda: artifacts.manifest("model", FP), checkpoints.latest):
        with pytest.raises(StoreError, match=r"written by a newer tokenmill .*reads up to 1.*upgrade") as error:
            look()
        assert isinstance(error.value, UserError)
    assert list(artifacts.manifests("model")) == []  # another's artifact stops nobody who doesn't need it
    assert not list(artifacts.store.list("aside"))
    checkpoints.clear()
    assert checkpoints.steps() == []


@pytest.mark.parametrize(
    "lie", ["torn", "no json", "another step", "place", "name", "no manifest", "shorter"], ids=lambda lie: lie
)
def test_a_damaged_checkpoint_is_set_aside_and_said(lie, tmp_path, caplog):
    checkpoints = Artifacts(tmp_path / "store").checkpoints(FP)
    for step in (1, 2):
        checkpoints.save(step, build(tmp_path, {"model": f"{step}"}))
    key = f"{checkpoints.key}/step-{2:012d}"
    path, artifacts = Path(tmp_path, "store", key), Artifacts(tmp_path / "store")
    if lie == "torn":
        (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes()[:20])
    elif lie == "no json":
        (path / MANIFEST).write_bytes(b"\xff\0")
    elif lie == "no manifest":
        (path / MANIFEST).unlink()
    elif lie == "shorter":
        (path / "model").write_bytes(b"")
    else:
        lies = {"another step": {"step": 9}, "place": {"prefix": "model/x/"}}
        say(artifacts, key, **lies.get(lie, {"files": {"../x": {"size": 1, "sha256": ""}}}))
    with caplog.at_level(logging.WARNING):
        found = checkpoints.latest()
    assert found is not None and found[0] == 1
    assert "Set aside the checkpoint of step 2: " in caplog.text
    (said,) = checkpoints.aside()
    assert said.startswith("step 2: ") and checkpoints.steps() == [1]
    assert f"damaged checkpoint set aside: {said}" in TrainingSummary(set_aside=[said]).words()
    assert Artifacts(tmp_path / "store").checkpoints("another").aside() == []
    assert Summary.read({}).words() == ""


@pytest.mark.parametrize("nonce", ["", "../../../model", "/x", "a\\b", "..", "x\0"])
def test_a_lease_whose_nonce_is_no_name_is_nobodys(nonce):
    assert _parse(json.dumps({"nonce": nonce}).encode()) == Owner()
    assert _parse(b'{"since": "yesterday"}') == Owner()
