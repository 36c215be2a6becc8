"""Presets against the counts of real shapes, on the meta device."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from model.config import ModelConfig
from model.count import meta_model, parameters
from model.presets import NAMES, SIZES, preset

UNITS = {"M": 1e6, "B": 1e9}


def without_embeddings(name: str) -> int:
    counts = parameters(ModelConfig(vocab_size=1000, **preset(name)))
    return counts.total - counts.embedding


def size_of(name: str) -> float:
    text = "3M" if name == "mini-gpt" else name.removeprefix("mini-gpt-")
    return float(text[:-1]) * UNITS[text[-1]]


@pytest.mark.parametrize("name", NAMES)
def test_a_named_preset_has_its_size_without_embeddings(name):
    assert without_embeddings(name) == pytest.approx(size_of(name), rel=0.05)


@pytest.mark.parametrize("family", ["", "mini-gpt-"])
def test_any_size_between_is_met_to_five_percent(family):
    for i in range(12):
        millions = 70_000 ** (i / 11.01)
        name = f"{family}{millions:.4f}M"
        assert without_embeddings(name) == pytest.approx(size_of(name), rel=0.05), name


def test_presets_grow_in_width_and_depth():
    shapes = [preset(size) for size in SIZES]
    for key in ("d_model", "n_layers"):
        values = [shape[key] for shape in shapes]
        assert values[0] < values[-1]
    widths = [shape["d_model"] for shape in shapes]
    assert widths == sorted(widths)
    assert all(10 < shape["d_model"] / shape["n_layers"] < 150 for shape in shapes)


def test_7b_has_the_shape_of_llama_3_8b():
    """arXiv 2407.21783, table 3."""
    shape = ModelConfig(128_256, **preset("7B"))
    assert (shape.d_model, shape.n_layers, shape.n_heads, shape.kv_heads, shape.ff_width) == (4096, 32, 32, 8, 14_336)
    assert parameters(shape).total == 8_030_261_248


def test_mini_gpt_is_gpt2_with_other_sizes():
    shape = ModelConfig(300, max_seq_len=128, **preset("mini-gpt"))
    with torch.device("meta"):
        theirs = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=300, n_positions=128, n_embd=shape.d_model, n_layer=shape.n_layers, n_head=shape.n_heads
            )
        )
    assert shape.ff_width == 4 * shape.d_model
    assert parameters(shape).total == sum(p.numel() for p in theirs.parameters())


def test_a_preset_of_sizes_keeps_the_architecture():
    """Its keys are sizes, so that a smaller Llama and a smaller hybrid are both one key away."""
    kept = {"position", "norm", "feed_forward", "pattern", "bias", "qk_norm"}
    assert not kept & preset("125M").keys() and kept <= preset("mini-gpt-125M").keys()


def test_seventy_billion_parameters_are_made_without_memory():
    model = meta_model(ModelConfig(128_256, **preset("70B")))
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) > 70e9


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("125", "125M"), ("mini-gtp", "mini-gpt"), ("350MB", "350M"), ("0.5M", None), ("71B", None), ("", None)],
)
def test_what_is_no_size_is_refused_with_the_nearest_name(name, nearest):
    with pytest.raises(ValueError, match="any size from 1M to 70B") as caught:
        preset(name)
    assert nearest is None or f"Did you mean {nearest}?" in str(caught.value)
