"""A model on disk: `model.safetensors` (weights by name, no pickle) and `config.json` (its ModelConfig)."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from model.config import ModelConfig
from model.count import meta_model
from model.decoder import Decoder
from model.errors import UserError
from model.files import given, named, read_json
from model.sizes import check_sizes
from model.tensors import load_tensors, open_tensors, save_tensors

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save_model(model: Decoder, folder: Path | str) -> None:
    """Write weights and config into `folder` (made if missing)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(asdict(model.config), indent=2) + "\n", encoding="utf-8")


def load_config(folder: Path | str) -> ModelConfig:
    """A folder's config. Raises UserError for what is none, or has sizes that its weights can't have (sizes.py)."""
    folder = Path(folder)
    with named(folder / CONFIG):
        config = ModelConfig.from_dict(read_json(folder / CONFIG))
    if given(folder / WEIGHTS):
        with open_tensors(folder / WEIGHTS) as file:
            there = len(file.keys())
        try:
            check_sizes(config, there, (folder / WEIGHTS).stat().st_size)
        except UserError as error:
            raise UserError(f"{folder / CONFIG} {error}.") from None
    return config


def load_model(folder: Path | str, device: torch.device | str = "cpu") -> Decoder:
    """The decoder that `save_model` wrote, in evaluation mode; ValueError if the weights don't fit the config."""
    model = without_memory(folder)
    # Not `to_empty`: torch.empty_like of a tensor without memory imports sympy, half a second.
    model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
    model.load_state_dict(load_tensors(Path(folder) / WEIGHTS))
    return model.eval()


def without_memory(folder: Path | str) -> Decoder:
    """A folder's model on the meta device, by its config and its weights' header; raises as `load_model`."""
    folder = Path(folder)
    config = load_config(folder)
    try:
        model = meta_model(config)
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}.") from None
    _check_shapes(model, folder)
    return model


def load_weights(model: Decoder, folder: Path | str) -> None:
    """Fill an existing model; ValueError names what is missing, unknown or of another shape."""
    _check_shapes(model, Path(folder))
    model.load_state_dict(load_tensors(Path(folder) / WEIGHTS))


def _check_shapes(model: Decoder, folder: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    with open_tensors(folder / WEIGHTS) as file:
        there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if expected != there:
        wrong = sorted(name for name in expected.keys() | there.keys() if expected.get(name) != there.get(name))
        lines = [f"{name}: the config says {expected.get(name)}, the file has {there.get(name)}" for name in wrong[:5]]
        raise UserError(f"{folder}: {len(wrong)} weights don't fit the config, e.g. " + "; ".join(lines))
