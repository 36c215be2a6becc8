"""The fixtures `config` and `model` run a test on every shape of small_models.py, `causal_model` on the causal ones."""

import pytest
from small_models import SHAPES, TWO_WAY, lively

from model.config import ModelConfig
from model.decoder import Decoder


@pytest.fixture(params=[*SHAPES.values(), *TWO_WAY.values()], ids=[*SHAPES, *TWO_WAY])
def config(request) -> ModelConfig:
    return request.param


@pytest.fixture
def model(config: ModelConfig) -> Decoder:
    return lively(config)


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def causal_model(request) -> Decoder:
    return lively(request.param)
