"""Whole models: every mixer's linears, a file of them, and what is lost on text."""

from pathlib import Path

import pytest
import torch
from torch import nn
from trained import CONFIG, MOE, batch, calibration, loss, trained

from model.checkpoint import load_model, load_weights, save_model
from model.config import ModelConfig
from model.decoder import Decoder
from model.quantization import KEPT, Kind
from model.quantize.calibrate import Method, quantize
from model.quantize.linear import QuantizedLinear
from model.quantize.replace import linears, take_apart, widened
from tests.model.small_models import random_tokens


def logits(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(tokens)[0])


def test_every_linear_of_every_mixer_is_quantized_and_the_function_stays(model: Decoder, tmp_path: Path) -> None:
    tokens = random_tokens(2, 24)
    before = logits(model, tokens)
    done = quantize(model, "int8")
    assert not [n for n in linears(model) if n != "head" and not n.endswith("router")]
    assert set(done.layers.values()) == {"int8"}
    after = logits(model, tokens)
    agree = (before.argmax(-1) == after.argmax(-1)).float().mean()
    assert agree > 0.8 and ((after - before) ** 2).mean() / before.var() < 0.05  # a router may choose otherwise
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert torch.equal(logits(again, tokens), after) and again.quantization == done


def test_experts_taken_apart_are_the_same_function() -> None:
    model, tokens = trained(MOE), random_tokens(2, 24, vocab_size=64)
    before = logits(model, tokens)
    torch.testing.assert_close(logits(take_apart(model), tokens), before)


@pytest.mark.parametrize("config", [CONFIG, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize(
    ("kind", "method", "most"),
    [("int8", "rtn", 1.01), ("int8-dynamic", "rtn", 1.01), ("int8", "gptq", 1.01), ("int4", "gptq", 1.04)],
)
def test_a_trained_model_loses_little(config: ModelConfig, kind: Kind, method: Method, most: float) -> None:
    model = trained(config)
    before = loss(model)
    assert before < 2.0  # it has learned: chance is ln 64 = 4.2
    quantize(model, kind, method, 32, rows=calibration())
    assert loss(model) < most * before


def test_gptq_s_logits_are_nearer_than_those_of_rounding_to_nearest_on_text_that_it_has_not_seen() -> None:
    tokens, far = batch(16, 999).tokens_BT, {}
    for method in ("rtn", "gptq"):
        model = trained()
        quantize(model, "int4", method, 64, rows=calibration())
        far[method] = float((logits(model, tokens) - logits(trained(), tokens)).square().mean())
    assert far["gptq"] < 0.8 * far["rtn"]


def test_files_are_two_and_three_and_a_half_times_smaller_than_in_bfloat16(tmp_path: Path) -> None:
    cases: list[tuple[Kind, float]] = [("int8", 1.9), ("int4", 3.5)]
    for kind, least in cases:
        model = trained()
        quantize(model, kind, group_size=64)
        weights = codes = 0
        for module in model.modules():
            if isinstance(module, QuantizedLinear):
                weights += module.in_features * module.out_features
                codes += sum(b.numel() * (2 if b.is_floating_point() else 1) for b in module.buffers())
        assert 2 * weights / codes > least
        save_model(model, tmp_path / kind)
        wide = 2 * sum(p.numel() for p in trained().parameters()) - 2 * weights
        size = (tmp_path / kind / "model.safetensors").stat().st_size
        assert size < codes + wide + 12_000  # names and norms in float32


def test_what_stays_wide_is_a_setting() -> None:
    model = trained()
    done = quantize(model, "int8", keep=(*KEPT, "*.down", "blocks.0.*"))
    left = ("feed_forward.gate", "feed_forward.up", "mixer.out", "mixer.qkv")
    assert sorted(done.layers) == [f"blocks.1.{name}" for name in left]
    with pytest.raises(LookupError, match=r"'\*\.dwn' matches no linear"):
        quantize(trained(), "int8", keep=("*.dwn",))
    with pytest.raises(ValueError, match="keeps every linear"):
        quantize(trained(), "int8", keep=("*",))


def test_inputs_that_do_not_divide_into_groups_are_int8() -> None:
    model = trained()
    width = model.config.ff_width
    assert width % 128
    done = quantize(model, "int4", group_size=64 if width % 64 else 128)
    assert "int8" in set(done.layers.values())


def test_a_widened_model_is_a_plain_one_that_stands_for_the_same(tmp_path: Path) -> None:
    model = trained(MOE)
    quantize(model, "int4", group_size=32)
    wide = widened(model)
    assert wide.state_dict().keys() == Decoder(MOE).state_dict().keys()
    assert abs(loss(wide) - loss(model)) < 0.01
    with pytest.raises(ValueError, match="don't fit the config"):
        save_model(model, tmp_path)
        load_weights(Decoder(MOE), tmp_path)


def test_a_file_s_own_words_on_its_quantization_are_checked(tmp_path: Path) -> None:
    model = trained()
    quantize(model, "int8")
    save_model(model, tmp_path)
    config = (tmp_path / "config.json").read_text(encoding="utf-8")
    for old, new, said in (
        ('"kind": "int8"', '"kind": "int7"', "is not one of 'int8'"),
        ('"blocks.0.mixer.qkv"', '"blocks.9.mixer.qkv"', "blocks.9.mixer.qkv"),
        ('"group_size": 64', '"group_size": 0', "group_size is 0"),
        ('"blocks.0.mixer.qkv": "int8"', '"blocks.0.mixer.qkv": 8', "of another kind"),
    ):
        assert old in config
        (tmp_path / "config.json").write_text(config.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(ValueError, match=said) as error:
            load_model(tmp_path)
        assert "config.json" in str(error.value)


def test_stacks_of_experts_are_linears_of_their_own() -> None:
    names = list(linears(take_apart(trained(MOE))))
    assert "blocks.0.feed_forward.down.3" in names
    assert all(isinstance(m, nn.Linear) for m in linears(trained()).values())
