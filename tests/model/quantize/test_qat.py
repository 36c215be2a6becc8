"""Fake quantization: the forward pass is the quantized model's, the gradient is the plain one's."""

import pytest
import torch
import torch.nn.functional as F
from trained import CONFIG, MOE, batch, loss, trained

from model.config import ModelConfig
from model.decoder import Decoder
from model.objectives.next_token import next_token
from model.quantization import KEPT, Kind
from model.quantize.calibrate import quantize
from model.quantize.grid import round_to_nearest
from model.quantize.qat import FakeLinear, fake, prepare

KINDS: tuple[Kind, ...] = ("int8", "int8-dynamic", "int4")


def test_the_gradient_is_straight_through() -> None:
    torch.manual_seed(0)
    linear, x, up = torch.nn.Linear(64, 8), torch.randn(5, 64, requires_grad=True), torch.randn(5, 8)
    faked = FakeLinear(linear, "int4", 32)
    faked(x).backward(up)
    assert linear.weight.grad is not None and x.grad is not None
    rounded = round_to_nearest(linear.weight.detach(), "int4", 32).decode()
    torch.testing.assert_close(faked(x), F.linear(x, rounded, linear.bias))
    torch.testing.assert_close(linear.weight.grad, up.T @ x.detach())  # as if W' were W
    torch.testing.assert_close(x.grad, up @ rounded)


def test_a_group_that_does_not_come_out_even_is_on_the_int8_grid() -> None:
    weight = torch.randn(4, 40)
    assert torch.equal(fake(weight, "int4", 32), fake(weight, "int8", 32))


@pytest.mark.parametrize("config", [CONFIG, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_quantized_model(config: ModelConfig, kind: Kind) -> None:
    faked, quantized = prepare(trained(config), kind, 32), trained(config)
    quantize(quantized, kind, group_size=32)
    assert loss(faked) != loss(trained(config))
    assert loss(faked) == pytest.approx(loss(quantized), rel=5e-3)  # its products are in bfloat16
    assert faked.state_dict().keys() == Decoder(config).state_dict().keys()


def test_what_is_kept_is_not_rounded() -> None:
    model = prepare(trained(MOE), "int4", 32, (*KEPT, "blocks.0.*", "blocks.1.feed_forward.up.2"))
    assert not isinstance(model.get_submodule("blocks.0.mixer.qkv"), FakeLinear)
    part, plain = model.get_submodule("blocks.1.feed_forward"), trained(MOE).get_submodule("blocks.1.feed_forward")
    same = [bool((a == b).all()) for a, b in zip(part.stack("up"), plain.stack("up"), strict=True)]  # type: ignore[operator]
    assert same == [False, False, True, False]


def test_training_with_it_lowers_the_loss_that_rounding_leaves() -> None:
    coarse: dict[str, int] = {"group_size": 64}

    def rounded(model: Decoder) -> float:
        quantize(model, "int4", **coarse, keep=KEPT)
        return loss(model)

    def on(model: Decoder) -> Decoder:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for step in range(20):
            total, count, _ = next_token(model, batch(16, 100 + step))
            optimizer.zero_grad()
            (total / count).backward()
            optimizer.step()
        return model

    aware = on(prepare(trained(), "int4", **coarse))
    plain = trained()
    plain.load_state_dict(aware.state_dict())
    assert rounded(plain) < rounded(trained())
