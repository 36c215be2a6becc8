"""A model on disk: `model.safetensors` (weights by name, no pickle) and `config.json` (its ModelConfig).

Of a quantized model config.json also says how, as `quantization`, and the weights have the codes; what is not quantized
is in bfloat16 there where it is a matrix.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from model.config import ModelConfig
from model.count import meta_model
from model.decoder import Decoder
from model.errors import UserError
from model.files import given, named, read_json
from model.quantization import Quantization
from model.sizes import check_sizes
from model.tensors import load_tensors, open_tensors, save_tensors

WEIGHTS, CONFIG, QUANTIZATION = "model.safetensors", "config.json", "quantization"


def save_model(model: Decoder, folder: Path | str) -> None:
    """Write weights and config into `folder` (made if missing)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    config = asdict(model.config)
    if model.quantization is not None:
        config[QUANTIZATION] = model.quantization.to_dict()
        from model.quantize.replace import in_bfloat16

        weights |= {name: weights[name].bfloat16() for name in in_bfloat16(model)}
    save_tensors(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_config(folder: Path | str) -> ModelConfig:
    """A folder's config. Raises UserError for what is none, or has sizes that its weights can't have (sizes.py)."""
    folder = Path(folder)
    with named(folder / CONFIG):
        values = read_json(folder / CONFIG)
        values.pop(QUANTIZATION, None)
        config = ModelConfig.from_dict(values)
    if given(folder / WEIGHTS):
        with open_tensors(folder / WEIGHTS) as file:
            there = len(file.keys())
        try:
            check_sizes(config, there, (folder / WEIGHTS).stat().st_size)
        except UserError as error:
            raise UserError(f"{folder / CONFIG} {error}.") from None
    return config


def load_quantization(folder: Path | str) -> Quantization | None:
    """How a folder's model is quantized; None: it isn't. Raises UserError for what says it wrongly."""
    folder = Path(folder)
    with named(folder / CONFIG):
        found = read_json(folder / CONFIG).get(QUANTIZATION)
        if found is not None and not isinstance(found, dict):
            raise UserError(f"{CONFIG} has a {QUANTIZATION} that is no object.")
        return None if found is None else Quantization.from_dict(found)


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
    quantization = load_quantization(folder)
    if quantization is not None:
        from model.quantize.replace import shells

        with named(folder / CONFIG):
            shells(model, quantization)
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
