"""Any value of a manifest may be any other: it is taken, or set aside and made again, or of a later version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.align.instruct import InstructSummary
from cluster.align.rlhf import RlhfSummary
from cluster.data.summaries import DocumentsSummary, TokenizerSummary, TokensSummary
from cluster.evaluate.summary import EvaluationSummary
from cluster.interop.base import STAGE, BaseSummary, find_base
from cluster.release.summary import ReleaseSummary
from cluster.stage import Step, Summary, find, fingerprint, run_step
from cluster.store.artifact import Artifact, Artifacts
from cluster.store.base import MANIFEST, NewerInStore, StoreError
from cluster.train.summary import TrainingSummary
from flows.plan import look
from tests.cluster.interop.test_any_structure import VALUES, places, replaced
from tests.cluster.tiny_model import make_model

SUMMARIES = (BaseSummary, DocumentsSummary, EvaluationSummary, InstructSummary, ReleaseSummary, RlhfSummary,
             TokenizerSummary, TokensSummary, TrainingSummary)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Step, Artifact]:
    folder = tmp_path_factory.mktemp("made")
    step = Step("base", STAGE, find_base(str(make_model(folder / "model"))), {})
    return step, run_step(step, Artifacts(folder / "store")).artifact


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_in_a_manifest(data: st.DataObject, made: tuple[Step, Artifact]) -> None:
    step, artifact = made
    store = Path(artifact.store_url)
    path = store / artifact.kind / artifact.fingerprint / MANIFEST
    good = json.loads(path.read_text(encoding="utf-8"))
    at = data.draw(st.sampled_from(sorted(places(good), key=str)))
    path.write_text(json.dumps(replaced(good, at, data.draw(VALUES))), encoding="utf-8")
    artifacts = Artifacts(artifact.store_url)
    try:
        look([step], artifacts)
        other = Step("base", STAGE, step.config.model_copy(update={"digest": "another"}), {})
        look([other], artifacts)
        again = run_step(step, artifacts)
        assert isinstance(again.summary.words(), str)
        assert find(step, artifacts) is not None
        artifacts.lineage(again.artifact)
    except NewerInStore as error:
        assert at == ("format",) and artifact.fingerprint in str(error)
    finally:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(good), encoding="utf-8")


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_in_a_checkpoints_manifest(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The checkpoint counts as whole, or it is set aside and the one before it is taken, or a later version's."""
    folder = tmp_path_factory.mktemp("store")
    checkpoints = Artifacts(folder / "store").checkpoints("f" * 20)
    for step in (1, 2):
        (folder / "new").mkdir()
        (folder / "new" / "state").write_text(f"{step}", encoding="utf-8")
        checkpoints.save(step, folder / "new")
    path = folder / "store" / checkpoints.key / f"step-{2:012d}" / MANIFEST
    good = json.loads(path.read_text(encoding="utf-8"))
    at = data.draw(st.sampled_from(sorted(places(good), key=str)))
    path.write_text(json.dumps(replaced(good, at, data.draw(VALUES))), encoding="utf-8")
    try:
        checkpoints.prune(1)
        found = checkpoints.latest()
    except StoreError as error:
        assert checkpoints.key in str(error)
        return
    assert found is None or (found[1] / "state").read_text(encoding="utf-8") == str(found[0])
    assert found is not None or checkpoints.aside()
    checkpoints.clear()
    assert checkpoints.steps() == []


def test_a_plan_says_which_summary_is_damaged(made: tuple[Step, Artifact], tmp_path: Path) -> None:
    step, artifact = made
    path = Path(artifact.store_url) / artifact.kind / fingerprint(step) / MANIFEST
    good = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(json.loads(good) | {"summary": {"parameters": [1], "model": {}}}), encoding="utf-8")
    try:
        (planned,) = look([step], Artifacts(artifact.store_url))
        assert not planned.cached
        (reason,) = planned.reasons
        assert reason.startswith(f"{artifact.kind}/{artifact.fingerprint} is damaged: its summary can't be read: ")
    finally:
        path.write_text(good, encoding="utf-8")


@pytest.mark.parametrize("kind", SUMMARIES, ids=lambda kind: kind.__name__)
def test_a_summary_is_read_as_it_was_written(kind: type[Summary]) -> None:
    values = json.loads(json.dumps(kind().values()))
    assert kind.read({}) == kind()
    assert json.loads(json.dumps(kind.read(values).values())) == values


def test_a_summary_of_other_kinds_of_values_is_damage_and_the_stage_runs_again(
    made: tuple[Step, Artifact], caplog: Any
) -> None:
    step, artifact = made
    path = Path(artifact.store_url) / artifact.kind / fingerprint(step) / MANIFEST
    good = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(json.loads(good) | {"summary": {"parameters": [1], "model": {}}}), encoding="utf-8")
    again = run_step(step, Artifacts(artifact.store_url))
    assert not again.cached
    assert "its summary can't be read: " in caplog.text
