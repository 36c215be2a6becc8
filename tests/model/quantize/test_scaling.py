"""AWQ and SmoothQuant: their scales change no function, and make what is rounded afterwards better."""

import pytest
import torch
from trained import batch, calibration, trained

from model.decoder import Block, Decoder
from model.quantize.awq import awq_scale, rounding_error
from model.quantize.calibrate import Method, quantize
from model.quantize.replace import take_apart
from model.quantize.scaling import Seen, folds, watched
from model.quantize.smoothquant import smooth_scale
from tests.model.small_models import random_tokens


def logits(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(tokens)[0])


def test_scales_leave_every_model_s_function_as_it_is(model: Decoder) -> None:
    tokens = random_tokens(2, 24)
    model = take_apart(model.double())
    wanted = logits(model, tokens)
    generator = torch.Generator().manual_seed(0)
    places = [fold for block in model.blocks if isinstance(block, Block) for fold in folds(block)]
    assert places or model.config.norm_position == "post"
    for fold in places:
        fold.apply(torch.rand(fold.readers[0].in_features, generator=generator).double() * 3 + 0.3)
    torch.testing.assert_close(logits(model, tokens), wanted, rtol=1e-4, atol=1e-4)  # logits are float32


def with_outliers() -> Decoder:
    """The trained model, with a few channels of activations far larger than the rest, as large models have them."""
    model = take_apart(trained())
    for block in model.blocks:
        assert isinstance(block, Block)
        for fold in folds(block):
            scale = torch.ones(fold.readers[0].in_features)
            scale[::16] = 1 / 60
            fold.apply(scale)
    return model


@pytest.mark.parametrize(("kind", "method", "group"), [("int8-dynamic", "smoothquant", 64), ("int4", "awq", 64)])
def test_activations_with_outliers_lose_less(kind, method: Method, group: int) -> None:
    tokens, far = batch(16, 999).tokens_BT, {}
    wanted = logits(with_outliers(), tokens)
    methods: tuple[Method, ...] = ("rtn", method)
    for one in methods:
        model = with_outliers()
        quantize(model, kind, one, group, rows=calibration(16))
        far[one] = float((logits(model, tokens) - wanted).square().mean())
    assert far[method] < 0.5 * far["rtn"]


def test_awq_s_scale_is_the_best_of_those_that_it_tries() -> None:
    model = with_outliers()
    block = model.blocks[0]
    assert isinstance(block, Block)
    fold = folds(block)[0]
    seen = Seen(64)
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 64)
    seen.add(x)
    weight, best = fold.readers[0].weight.detach(), awq_scale(fold, seen, "int4", 32)
    error = rounding_error(weight, best, seen.mean(), "int4", 32)
    tried = [x.abs().mean(0).pow(alpha / 20) for alpha in range(20)]
    others = [rounding_error(weight, s / (s.max() * s.min()).sqrt(), seen.mean(), "int4", 32) for s in tried]
    assert error <= min(others) * 1.0001 and error < others[0]


def test_smoothquant_s_scale_is_the_paper_s() -> None:
    model = with_outliers()
    block = model.blocks[0]
    assert isinstance(block, Block)
    with watched(folds(block)) as seen:
        logits(model, batch(2, 1).tokens_BT)
    fold, one = folds(block)[1], seen[1]
    weight = torch.cat([linear.weight.detach() for linear in fold.readers]).abs().amax(0)
    torch.testing.assert_close(smooth_scale(fold, one), (one.largest_I / weight).sqrt())
