"""Checkpoints of a run under way: the newest whole one is found, whatever happened to the last."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest
from tiny_artifact import FP, KILLED, build, contents

from cluster.store.artifact import Artifacts
from cluster.store.base import MANIFEST

pytestmark = pytest.mark.usefixtures("fresh_process")


def checkpoint(tmp_path: Path, text: str) -> Path:
    return build(tmp_path, {"model": text, "state/rank0": text * 2})


def test_the_latest_checkpoint_is_the_newest_whole_one(store_url, tmp_path):
    checkpoints = Artifacts(store_url).checkpoints(FP)
    assert checkpoints.latest() is None
    for step in (5, 100, 20):
        checkpoints.save(step, checkpoint(tmp_path, f"step {step}"))
    found = pickle.loads(pickle.dumps(checkpoints)).latest()
    assert found is not None and found[0] == 100
    assert contents(found[1]) == {"model": "step 100", "state/rank0": "step 100step 100"}
    assert Artifacts(store_url).checkpoints("other").latest() is None


@pytest.mark.parametrize("damage", ["torn", "bytes differ", "no manifest"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(store_url, tmp_path, damage):
    checkpoints = Artifacts(store_url, tmp_path / "writer").checkpoints(FP)
    checkpoints.save(1, checkpoint(tmp_path, "one"))
    checkpoints.save(2, checkpoint(tmp_path, "two"))
    key = next(
        e.key for e in checkpoints.store.list(checkpoints.key) if f"{2:012d}/" in e.key and e.key.endswith("model")
    )
    if damage == "torn":
        checkpoints.store.write(key, b"t")
    elif damage == "bytes differ":
        checkpoints.store.write(key, b"TWO")
    else:
        checkpoints.store.delete_prefix(f"{checkpoints.key}/step-{2:012d}/{MANIFEST}")
    fresh = Artifacts(store_url, tmp_path / "reader").checkpoints(FP)
    found = fresh.latest()
    assert found is not None and found[0] == 1 and contents(found[1])["model"] == "one"
    aside = [e.key for e in fresh.store.list("aside") if e.key.endswith("reason.txt")]
    if damage == "bytes differ":  # found out by its reader alone: the others are not looked at again
        assert len(aside) == 1 and b"checksum" in fresh.store.read(aside[0]) and fresh.steps() == [1]
    fresh.save(2, checkpoint(tmp_path, "two again"))
    found = fresh.latest()
    assert found is not None and found[0] == 2 and contents(found[1])["model"] == "two again"


@pytest.mark.parametrize("name", ["model", "empty", MANIFEST])
def test_nobody_waits_at_a_pipe_where_a_file_should_be(tmp_path, name):
    checkpoints = Artifacts(tmp_path / "store").checkpoints(FP)
    for step in (1, 2):
        checkpoints.save(step, build(tmp_path, {"model": f"{step}", "empty": ""}))
    path = tmp_path / "store" / checkpoints.key / f"step-{2:012d}" / name
    path.unlink()
    os.mkfifo(path)
    found = []
    reader = threading.Thread(target=lambda: found.append(checkpoints.latest()), daemon=True)
    reader.start()
    reader.join(60)
    assert found and found[0][0] == 1


def test_what_is_no_checkpoint_is_passed_over(store_url, tmp_path):
    checkpoints = Artifacts(store_url).checkpoints(FP)
    checkpoints.save(3, checkpoint(tmp_path, "three"))
    checkpoints.store.write(f"{checkpoints.key}/notes/x", b"x")
    assert checkpoints.steps() == [3]


def test_a_step_saved_again_after_a_resume_is_fine_and_the_newer_counts(store_url, tmp_path):
    checkpoints = Artifacts(store_url).checkpoints(FP)
    manifests = []
    for text in ("same", "same", "other"):
        folder = checkpoint(tmp_path, text)
        checkpoints.save(7, folder)
        assert not folder.exists()
        manifests.append(checkpoints.store.read(f"{checkpoints.key}/step-{7:012d}/{MANIFEST}"))
    assert manifests[0] == manifests[1] != manifests[2], "what is there is not written again"
    found = checkpoints.latest()
    assert found is not None and contents(found[1])["model"] == "other"
    assert checkpoints.steps() == [7]


def test_pruning_keeps_the_newest_and_clearing_none(store_url, tmp_path):
    checkpoints = Artifacts(store_url, tmp_path / "cache").checkpoints(FP)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, checkpoint(tmp_path, f"{step}"))
    checkpoints.prune(2)
    assert checkpoints.steps() == [3, 4]
    with pytest.raises(ValueError, match="at least one"):
        checkpoints.prune(0)
    checkpoints.clear()
    assert checkpoints.latest() is None
    assert list(checkpoints.store.list()) == []
    copies = tmp_path / "cache" / "artifacts"
    assert not copies.exists() or list(copies.iterdir()) == []


def test_a_copy_that_was_fetched_goes_with_its_checkpoint(s3_url, tmp_path):
    url = f"{s3_url}/{uuid.uuid4().hex}"
    Artifacts(url, tmp_path / "writer").checkpoints(FP).save(1, checkpoint(tmp_path, "one"))
    reader = Artifacts(url, tmp_path / "reader").checkpoints(FP)
    assert reader.latest() is not None
    assert list((tmp_path / "reader" / "artifacts").iterdir()) != []
    reader.clear()
    assert list((tmp_path / "reader" / "artifacts").iterdir()) == []


@pytest.mark.parametrize("damage", ["torn", "no manifest"])
def test_pruning_never_counts_a_damaged_checkpoint_as_one_that_it_keeps(store_url, tmp_path, damage):
    """The last good one stays, however many damaged ones are newer."""
    checkpoints = Artifacts(store_url, tmp_path / "writer").checkpoints(FP)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, checkpoint(tmp_path, f"{step}"))
    for entry in list(checkpoints.store.list(checkpoints.key)):
        if f"{3:012d}/" in entry.key or f"{4:012d}/" in entry.key:
            if damage == "torn" and entry.key.endswith("model"):
                checkpoints.store.write(entry.key, b"")
            elif damage == "no manifest" and entry.key.endswith(MANIFEST):
                checkpoints.store.delete_prefix(entry.key)
    checkpoints.prune(2)
    assert {1, 2} <= set(checkpoints.steps())
    checkpoints.prune(1)
    found = Artifacts(store_url, tmp_path / "reader").checkpoints(FP).latest()
    assert found is not None and found[0] == 2 and contents(found[1])["model"] == "2"


def test_a_kill_while_saving_leaves_the_one_before(store_url, tmp_path):
    checkpoints = Artifacts(store_url).checkpoints(FP)
    checkpoints.save(1, checkpoint(tmp_path, "one"))
    folder = checkpoint(tmp_path, "two")
    code = KILLED.format(where="before the manifest", url=store_url, folder=str(folder), manifest="").replace(
        f"Artifacts({store_url!r}).publish(Manifest.model_validate_json(''), Path({str(folder)!r}))",
        f"Artifacts({store_url!r}).checkpoints({FP!r}).save(2, Path({str(folder)!r}))",
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    found = checkpoints.latest()
    assert found is not None and found[0] == 1
    checkpoints.save(2, checkpoint(tmp_path, "two"))
    found = checkpoints.latest()
    assert found is not None and found[0] == 2
