"""Decoding. `engine` (one token after another) and `diffusion` (from hidden to visible) have the same functions."""

from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.config import ModelConfig


def engine_for(config: "ModelConfig") -> ModuleType:
    """The module whose `generate` and `stream` a model is sampled with."""
    from model.generate import diffusion, engine

    return engine if config.causal else diffusion
