"""The stages `quantize` and `qat`: a model that is loaded like any other, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from cluster.errors import Stopped, UserError
from cluster.evaluate.bits import score_source
from cluster.evaluate.config import EvaluateConfig
from cluster.quantize.config import QatTable, QuantizeConfig
from cluster.quantize.qat import QatConfig, Training, qat_config, qat_worker
from cluster.quantize.quantize import STAGE
from cluster.quantize.summary import QuantizeSummary
from cluster.registry.find import model_folder
from cluster.release.package import count_parameters, save_package
from cluster.serve.generator import Generator
from cluster.stage import Hooks, Stage, Step, Surroundings, Workspace, run_step
from cluster.store.artifact import Artifacts
from cluster.train.pretrain import PretrainConfig, Pretraining, pretrain_worker
from model.checkpoint import load_model, load_quantization
from model.config import ModelConfig
from model.train_config import TrainConfig
from tests.cluster.train.alone import Alone, folder_of, make_tokens
from tests.given_summary import Given

SHAPE = ModelConfig(d_model=64, n_layers=2, n_heads=2, max_seq_len=64, d_ff=128)
TRAIN = TrainConfig(steps=40, batch_size=8, seq_len=48, lr=5e-3, warmup_steps=2, checkpoint_every=0)


class Nothing(BaseModel):
    pass


def _tokens(ws: Workspace) -> Given:
    make_tokens(ws.out)
    return Given({})


def _model(ws: Workspace) -> Given:
    tokens = ws.inputs["tokens"].path()
    pretrain_worker(Alone(ws.out), Pretraining(PretrainConfig(model=SHAPE, train=TRAIN), *[folder_of(tokens)] * 2))
    for name in ("tokenizer.model", "tokenizer.json"):
        (ws.out / name).write_bytes((tokens / name).read_bytes())
    return Given({})


TOKENS = Step("pack", Stage("pack", "tokens", 1, Nothing, _tokens, Given, uses_ray=False), Nothing(), {})
MODEL = Step(
    "pretrain", Stage("pretrain", "model", 1, Nothing, _model, Given, uses_ray=False), Nothing(), {"tokens": TOKENS}
)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    return Artifacts(tmp_path_factory.mktemp("quantized") / "store")


def step(model: Step = MODEL, text: bool = True, **config: Any) -> Step:
    fields = {"speed_tokens": 4, "calibration": {"tokens": 2048}} | config
    if config.get("method", "rtn") == "rtn":
        del fields["calibration"]
    inputs = {"model": model} | ({"tokens": TOKENS} if text else {})
    return Step("quantize", STAGE, QuantizeConfig(**fields), inputs)


@pytest.mark.parametrize(
    ("config", "smaller", "worse"),
    [
        ({"kind": "int8"}, 1.9, 1.01),
        ({"kind": "int8-dynamic", "method": "smoothquant"}, 1.9, 1.02),
        ({"kind": "int4", "method": "gptq", "act_order": True}, 3.5, 1.04),
        ({"kind": "int4", "method": "awq", "group_size": 128, "keep": ("*.down",)}, 0, 1.04),
    ],
)
def test_a_quantized_model_is_smaller_hardly_worse_and_used_like_any_other(
    config: dict[str, Any], smaller: float, worse: float, artifacts: Artifacts
) -> None:
    outcome = run_step(step(**config), artifacts)
    said, folder = outcome.summary, outcome.artifact.path()
    assert isinstance(said, QuantizeSummary)
    assert 2 * said.linear_parameters / said.linear_bytes > smaller
    assert said.bytes == (folder / "model.safetensors").stat().st_size < said.bytes_before / 2
    assert said.bpb and said.bpb_before and said.bpb_before < 2 and said.bpb < worse * said.bpb_before
    assert said.tokens_per_second and said.tokens_per_second_before
    assert config["kind"] in said.words() and f"{said.bpb:.3f} bits per byte" in said.words()
    assert said.report(outcome.artifact)
    # Loaded by what evaluates, serves and registers.
    tokens = run_step(TOKENS, artifacts).artifact
    score = score_source(outcome.artifact, tokens, "prose", EvaluateConfig(validation_mb=0.25))
    assert score and score["bpb"] == pytest.approx(said.bpb, rel=1e-6)
    assert len(Generator(model_folder(folder), device="cpu").complete("The quick", max_new_tokens=4, temperature=0))
    assert count_parameters(folder / "model.safetensors") == said.parameters
    kept = load_quantization(folder)
    assert kept and kept.kind == config["kind"] and len(kept.layers) == said.linears
    assert ("blocks.0.feed_forward.down" in kept.layers) == ("keep" not in config)


def test_linears_whose_inputs_do_not_divide_into_groups_are_said(artifacts: Artifacts) -> None:
    said = run_step(step(kind="int4", group_size=128), artifacts).summary
    assert isinstance(said, QuantizeSummary) and (said.in_int8, said.linears) == (8, 10)
    assert "8 of 10 linears in int8" in said.words()


def test_without_text_there_are_no_bits_per_byte_and_it_is_said(artifacts: Artifacts) -> None:
    outcome = run_step(step(kind="int8", text=False), artifacts)
    assert isinstance(outcome.summary, QuantizeSummary) and outcome.summary.bpb is None
    assert "bits per byte" not in outcome.summary.words()
    assert "not measured" in str(outcome.summary.report(outcome.artifact))


def test_what_is_quantized_already_is_refused(artifacts: Artifacts) -> None:
    with pytest.raises(UserError, match="quantized already"):
        run_step(step(step(kind="int8"), kind="int4"), artifacts)


def test_it_stops_when_asked_to(artifacts: Artifacts) -> None:
    with pytest.raises(Stopped, match="after 1 of 10 linears"):
        run_step(step(kind="int8", seed=5), artifacts, Surroundings(hooks=Hooks(stopping=lambda: True)))


def test_training_with_rounded_weights_leaves_a_plain_model_that_loses_less(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    model, tokens = run_step(MODEL, artifacts).artifact, run_step(TOKENS, artifacts).artifact
    table = QatTable(train=TrainConfig(steps=20, batch_size=8, seq_len=48, lr=1e-3, warmup_steps=2, checkpoint_every=0))
    config = qat_config(QuantizeConfig(kind="int4", group_size=64, qat=table), 3, {"prose": 1.0})
    assert config == QatConfig(kind="int4", group_size=64, train=table.train, seed=3, weights={"prose": 1.0})
    worker = Alone(tmp_path)
    qat_worker(worker, Training(config, model, tokens))
    assert len(worker.losses) == 20
    trained = load_model(tmp_path)
    assert trained.quantization is None
    assert not torch.equal(trained.head_weight, load_model(model.path()).head_weight)


def test_the_package_of_a_registered_version_has_it_whole(artifacts: Artifacts, tmp_path: Path) -> None:
    folder = run_step(step(kind="int8"), artifacts).artifact.path()
    save_package(folder, tmp_path / "package")
    again = model_folder(tmp_path / "package")
    assert json.loads((again / "config.json").read_text(encoding="utf-8"))["quantization"]["kind"] == "int8"
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(load_model(again)(tokens)[0], load_model(folder)(tokens)[0])
