"""A release step over a tiny model and made-up evaluations."""

import json
from pathlib import Path

from pydantic import BaseModel

from cluster.release.release import STAGE, ReleaseConfig
from cluster.stage import Stage, Step, Workspace
from tests.cluster.tiny_model import make_model
from tests.given_summary import Given

GATE = ({"metric": "bpb", "mode": "min"}, {"metric": "reward", "mode": "max", "max_regression": 0.1})


class ModelConfig(BaseModel):
    seed: int = 0


class EvaluationConfig(BaseModel):
    bpb: float = 2.0
    reward: float = 0.5


def _model(ws: Workspace) -> Given:
    make_model(ws.out, ws.config.seed)
    (ws.out / "train.json").write_text(
        "{}", encoding="utf-8"
    )  # an artifact's file that the registered model doesn't need
    return Given({"loss": 1.0})


def _evaluation(ws: Workspace) -> Given:
    Path(ws.out / "metrics.json").write_text(json.dumps({}), encoding="utf-8")
    return Given({"bpb": ws.config.bpb, "bpb/prose": ws.config.bpb + 0.1, "reward": ws.config.reward})


MODEL = Stage("pretrain", "model", 1, ModelConfig, _model, Given, uses_ray=False)
EVALUATE = Stage("evaluate", "evaluation", 1, EvaluationConfig, _evaluation, Given, uses_ray=False)


def release_step(bpb: float = 2.0, reward: float = 0.5, seed: int = 0, **config) -> Step:
    """Fields of `config` are ReleaseConfig's."""
    model = Step("pretrain", MODEL, ModelConfig(seed=seed), {})
    scores = Step("evaluate", EVALUATE, EvaluationConfig(bpb=bpb, reward=reward), {"model": model})
    before = Step("evaluate-base", EVALUATE, EvaluationConfig(bpb=4.0), {"model": model})
    fields = {"name": "tiny", "metrics": GATE, **config}
    inputs = {"model": model, "evaluation": scores, "base_evaluation": before}
    return Step("release", STAGE, ReleaseConfig.model_validate(fields), inputs)
