"""The fixtures `config` and `model` run a test on every shape of small_models.py."""

import pytest
from small_models import SHAPES, lively

from model.config import ModelConfig
from model.decoder import Decoder


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def config(request) -> ModelConfig:
    return request.param


@pytest.fixture
def model(config: ModelConfig) -> Decoder:
    return lively(config)
