"""Any value of a checkpoint's files may be any other: training resumes from it, or says which file it can't use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import UserError
from cluster.train.worker import EVENTS, read_events
from model.config import ModelConfig
from model.decoder import Decoder
from model.optim.groups import load_optimizers, make_optimizers
from model.train_config import TrainConfig
from model.trainer import OPTIMIZER, STATE, Batch, read_state, train
from tests.cluster.interop.test_any_structure import VALUES, joined, places, replaced, split

MODEL = ModelConfig(vocab_size=11, d_model=16, n_layers=1, n_heads=2)
CONFIG = TrainConfig(steps=2, batch_size=1, seq_len=4, precision="fp32", warmup_steps=0, checkpoint_every=0)


def batches(step: int) -> Batch:
    tokens = torch.arange(step, step + 5)[None]
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(4)[None])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(Decoder(MODEL), batches, CONFIG, save=lambda step, write: write(folder))
    points = [{"t": 1, "type": "metrics", "step": s, "values": {"loss": 1.0, "odd": float("nan")}} for s in (1, 2)]
    (folder / EVENTS).write_text("".join(json.dumps(p) + "\n" for p in points), encoding="utf-8")
    return folder


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_in_a_trainers_state(
    data: st.DataObject, whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("x") / "checkpoint"))
    good = json.loads((folder / STATE).read_text(encoding="utf-8"))
    at = data.draw(st.sampled_from(sorted(places(good), key=str)))
    (folder / STATE).write_text(json.dumps(replaced(good, at, data.draw(VALUES))), encoding="utf-8")
    try:
        state = read_state(folder)
    except UserError as error:
        assert str(folder / STATE) in str(error)
        return
    assert state.step >= 0 and state.tokens >= 0 and isinstance(state.extra, dict)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_in_a_checkpoints_curve(
    data: st.DataObject, whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("x") / EVENTS
    good = [json.loads(line) for line in (whole / EVENTS).read_text(encoding="utf-8").splitlines()]
    at = data.draw(st.sampled_from(sorted(places(good), key=str)))
    lines = replaced(good, at, data.draw(VALUES)) if at else [data.draw(VALUES)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    try:
        events = read_events(path)
    except UserError as error:
        assert str(path) in str(error)
        return
    [float(value) for event in events if event["type"] == "metrics" for value in event["values"].values()]


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_in_an_optimizers_header(
    data: st.DataObject, whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("x") / OPTIMIZER
    header, values = split((whole / OPTIMIZER).read_bytes())
    at = data.draw(st.sampled_from(sorted(places(header), key=str)))
    path.write_bytes(joined(replaced(header, at, data.draw(VALUES)), values))
    model = Decoder(MODEL)
    try:
        load_optimizers(make_optimizers(model, CONFIG), model, path)
    except UserError as error:
        assert str(path) in str(error)
