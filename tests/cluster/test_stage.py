"""Steps that are run once, found, resumed, and made again where they have to be."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_stage import Config, line, stage

from cluster.errors import Stopped
from cluster.stage import Hooks, Step, Surroundings, find, fingerprint, run_step
from cluster.store import folder as folder_module
from cluster.store import open_store
from cluster.store.artifact import Artifacts, Corrupt
from cluster.store.workplace import remove_dead
from tests.given_summary import Given


def test_a_step_runs_once_and_is_then_found(store_url):
    artifacts = Artifacts(store_url)
    assert find(line(), artifacts) is None
    first = run_step(line(), artifacts)
    assert not first.cached and (first.artifact.path() / "text").read_text(encoding="utf-8") == "ba"

    def refuse(ws):
        raise AssertionError("it ran again")

    again = run_step(line(run=refuse), Artifacts(store_url))
    assert again.cached and again.artifact.manifest == first.artifact.manifest
    assert again.seconds < 60


def test_the_manifest_tells_what_it_is_where_it_came_from_and_what_it_cost(store_url):
    artifacts = Artifacts(store_url)
    made = run_step(line(), artifacts).artifact.manifest
    corpus = find(line().inputs["corpus"], artifacts)
    assert corpus is not None
    assert made.inputs["corpus"].fingerprint == corpus.fingerprint
    assert (made.kind, made.stage, made.stage_version, made.name) == ("documents", "documents", 1, "filter")
    assert made.config["workers"] == 2 and made.identity == {"text": "b"}
    assert made.summary == {"length": 1, "devices": 3}
    assert made.device_seconds == pytest.approx(3 * made.wall_seconds, abs=0.01)
    assert made.files.keys() == {"text", "events.jsonl"}
    assert "torch" in made.packages and "python" in made.packages
    assert len(made.code_version) >= 7
    assert made.created.endswith("+00:00")


def test_fingerprints_do_not_depend_on_the_store(tmp_path, s3_url):
    here = run_step(line(), Artifacts(tmp_path)).artifact.manifest
    there = run_step(line(), Artifacts(f"{s3_url}/same")).artifact.manifest
    assert here.fingerprint == there.fingerprint
    assert here.files["text"] == there.files["text"]


def test_two_recipes_share_what_they_have_in_common(tmp_path):
    artifacts = Artifacts(tmp_path)
    run_step(line(), artifacts)
    other = Step("filter", stage(name="documents"), Config(text="c"), {"corpus": line().inputs["corpus"]})
    assert not run_step(other, artifacts).cached
    assert len(list(artifacts.store.folders("corpus"))) == 1
    assert len(list(artifacts.store.folders("documents"))) == 2


@pytest.mark.parametrize("new", ["", "x"])
def test_a_damaged_input_is_set_aside_and_made_again_for_the_step_that_needs_it(tmp_path, monkeypatch, new):
    artifacts = Artifacts(tmp_path)
    run_step(line(), artifacts)
    corpus = find(line().inputs["corpus"], artifacts)
    assert corpus is not None
    artifacts.store.write(corpus.manifest.prefix + "text", (new or "a").encode() if new else b"aa")
    monkeypatch.setattr(folder_module, "_verified", set())
    other = Step("filter", stage(name="documents"), Config(text="c"), {"corpus": line().inputs["corpus"]})
    assert (run_step(other, artifacts).artifact.path() / "text").read_text(encoding="utf-8") == "ca"
    assert len(list(artifacts.store.folders("aside"))) == 1


def test_an_input_that_a_reader_finds_damaged_is_made_again_once(s3_url, tmp_path):
    """On S3 the bytes are checked by whoever downloads them: here the stage, in the middle of its work."""
    url = f"{s3_url}/damaged-input"
    run_step(line().inputs["corpus"], Artifacts(url, tmp_path / "one"))
    artifacts = Artifacts(url, tmp_path / "two")
    corpus = find(line().inputs["corpus"], artifacts)
    assert corpus is not None
    artifacts.store.write(corpus.manifest.prefix + "text", b"x")
    assert (run_step(line(), artifacts).artifact.path() / "text").read_text(encoding="utf-8") == "ba"

    def always(ws):
        raise Corrupt("again")

    with pytest.raises(Corrupt, match="again"):
        run_step(Step("f", stage(always, name="documents"), Config(text="d"), line().inputs), artifacts)


def test_a_failed_stage_publishes_nothing_and_its_rests_go_with_the_next_run(store_url):
    artifacts = Artifacts(store_url)
    folders = []

    def fail(ws):
        folders.append(ws.out)
        (ws.out / "half").write_text("x", encoding="utf-8")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        run_step(line(run=fail), artifacts)
    assert find(line(), artifacts) is None
    assert folders[0].exists()  # its events may still have to be sent
    made = run_step(line(), artifacts).artifact
    assert made.manifest.files.keys() == {"text", "events.jsonl"}
    assert not folders[0].exists()


def test_the_rests_of_a_killed_run_are_removed_and_those_of_a_living_one_are_not(tmp_path):
    code = """
import os, signal, sys, time
from tests.cluster.tiny_stage import *
from cluster.stage import run_step
from cluster.store.artifact import Artifacts
def run(ws):
    (ws.out / "half").write_text("x")
    print(ws.out, flush=True)
    if sys.argv[1] == "die": os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
run_step(line(run=run), Artifacts(sys.argv[2]))
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": "."}
    dead = subprocess.run(
        [*command, "die", str(tmp_path)], env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert dead.returncode == -signal.SIGKILL
    with subprocess.Popen(
        [*command, "live", str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as living:
        try:
            folder = living.stdout.readline().strip()
            assert Path(folder).exists() and not Path(dead.stdout.strip()).exists()
            remove_dead(Path(folder).parent)
            assert Path(folder).exists()
        finally:
            living.kill()
    made = run_step(line(), Artifacts(tmp_path)).artifact
    assert (made.path() / "text").read_text(encoding="utf-8") == "ba"
    assert not Path(folder).exists()
    assert list(open_store(tmp_path).list("work")) == []


def test_a_stopped_stage_goes_on_from_its_checkpoint(store_url, tmp_path):
    def train(ws):
        found = ws.checkpoints.latest()
        begin = found[0] if found else 0
        for step in range(begin + 1, 7):
            ws.progress(step, 6, "")
            if step % 2 == 0:
                folder = tmp_path / "state"
                folder.mkdir()
                (folder / "state").write_text(f"{step}", encoding="utf-8")
                ws.checkpoints.save(step, folder)
            if ws.stopping():
                raise Stopped(f"at step {step}")
        (ws.out / "text").write_text("done", encoding="utf-8")
        return Given({"begun_at": begin})

    seen = []
    artifacts = Artifacts(store_url)
    with pytest.raises(Stopped, match="at step 3"):
        hooks = Hooks(progress=lambda done, total, text: seen.append(done), stopping=lambda: 3 in seen)
        run_step(line(run=train), artifacts, Surroundings(hooks=hooks))
    outcome = run_step(line(run=train), Artifacts(store_url))
    assert outcome.artifact.summary == {"begun_at": 2}
    assert list(artifacts.store.list("work")) == []  # its checkpoints have served


def test_force_makes_it_again_from_the_start_and_keeps_the_old_one_aside(store_url):
    artifacts = Artifacts(store_url)
    first = run_step(line(), artifacts).artifact

    def other(ws):
        assert ws.checkpoints.latest() is None
        (ws.out / "text").write_text("other", encoding="utf-8")
        return Given()

    outcome = run_step(line(run=other), artifacts, force=True)
    assert not outcome.cached and (outcome.artifact.path() / "text").read_text(encoding="utf-8") == "other"
    assert outcome.artifact.fingerprint == first.fingerprint
    [aside] = artifacts.store.folders("aside")
    assert b"by force" in artifacts.store.read(f"aside/{aside}/reason.txt")
    assert find(line(), artifacts).manifest == outcome.artifact.manifest


def test_what_no_longer_holds_is_made_again(store_url):
    artifacts = Artifacts(store_url)
    holds = [True]
    step = Step("release", stage(name="release", still_valid=lambda artifact, config: holds[0]), Config(), {})
    run_step(step, artifacts)
    assert run_step(step, artifacts).cached
    holds[0] = False
    assert find(step, artifacts) is None

    def register(ws):
        holds[0] = True
        (ws.out / "text").write_text("registered again", encoding="utf-8")
        return Given()

    again = Step("release", stage(register, name="release", still_valid=lambda a, c: holds[0]), Config(), {})
    holds[0] = False
    outcome = run_step(again, artifacts)
    assert not outcome.cached and (outcome.artifact.path() / "text").read_text(encoding="utf-8") == "registered again"


def test_a_summary_is_kept_as_strict_json(tmp_path):
    import numpy as np

    def run(ws):
        return Given({"loss": float("nan"), "count": np.int64(3), "rates": (1, np.float32(0.5))})

    made = run_step(Step("s", stage(run), Config(), {}), Artifacts(tmp_path)).artifact
    assert made.summary == {"loss": "nan", "count": 3, "rates": [1, 0.5]}
    json.loads((made.path() / "manifest.json").read_text(encoding="utf-8"), parse_constant=lambda c: pytest.fail(c))


def test_wrong_uses_are_named():
    with pytest.raises(ValueError, match="'x' needs a Config, not a dict"):
        Step("x", stage(), {}, {})
    with pytest.raises(TypeError, match="its summary is a Given"):
        run_step(Step("x", stage(lambda ws: None), Config(), {}), Artifacts("/nonexistent/never"), force=False)


def test_a_diamond_of_steps_is_walked_once_for_each_node():
    calls = []
    step = Step("0", stage(external=lambda c: calls.append(1) or {}), Config(), {})
    for i in range(40):
        step = Step(f"{i}", stage(name=f"s{i}"), Config(), {"left": step, "right": step})
    fingerprint(step)
    assert calls == [1]
