"""A model on disk: `model.safetensors` (weights by name, no pickle) and `config.json` (its ModelConfig)."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from model.config import ModelConfig
from model.decoder import Decoder
from model.errors import UserError
from model.files import named, read_json
from model.tensors import load_tensors, save_tensors

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save_model(model: Decoder, folder: Path | str) -> None:
    """Write weights and config into `folder` (made if missing)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(asdict(model.config), indent=2) + "\n", encoding="utf-8")


def load_config(folder: Path | str) -> ModelConfig:
    """A model's config. Raises UserError, with the file's name, for what is none."""
    path = Path(folder) / CONFIG
    with named(path):
        return ModelConfig.from_dict(read_json(path))


def load_model(folder: Path | str, device: torch.device | str = "cpu") -> Decoder:
    """The decoder that `save_model` wrote, in evaluation mode; ValueError if the weights don't fit the config."""
    folder = Path(folder)
    with torch.device("meta"):
        model = Decoder(load_config(folder))
    # Not `to_empty`: torch.empty_like of a tensor without memory imports sympy, half a second.
    model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
    load_weights(model, folder)
    return model.eval()


def load_weights(model: Decoder, folder: Path | str) -> None:
    """Fill an existing model; ValueError names what is missing, unknown or of another shape."""
    weights = load_tensors(Path(folder) / WEIGHTS)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != given:
        wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        lines = [f"{name}: the config says {expected.get(name)}, the file has {given.get(name)}" for name in wrong[:5]]
        raise UserError(f"{folder}: {len(wrong)} weights don't fit the config, e.g. " + "; ".join(lines))
    model.load_state_dict(weights)
