"""Muon against the exact polar factor, parameter groups, schedules."""

import math
from itertools import pairwise

import pytest
import torch
from small_models import SHAPES

from model.decoder import Decoder
from model.optim.groups import load_optimizers, make_optimizers, save_optimizers
from model.optim.muon import Muon, newton_schulz
from model.optim.schedule import learning_rate
from model.train_config import TrainConfig


@pytest.mark.parametrize("shape", [(16, 16), (24, 8), (8, 24)])
def test_newton_schulz_comes_near_the_polar_factor(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    given = newton_schulz(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    singular = torch.linalg.svdvals(given)
    assert singular.min() > 0.5 and singular.max() < 1.3
    assert (given - u @ v).norm(dim=(1, 2)).max() < 0.4 * math.sqrt(min(shape))


def test_a_stack_of_matrices_is_taken_apart():
    """q, k, v in one weight move as they would on their own."""
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(n, 6, generator=generator) for n in (8, 4, 4)]
    gradients = [torch.randn(b.shape, generator=generator) * 10**i for i, b in enumerate(blocks)]
    stacked = torch.nn.Parameter(torch.cat(blocks))
    apart = [torch.nn.Parameter(b.clone()) for b in blocks]
    one, many = Muon([(stacked, (8, 4, 4))], lr=0.1), Muon([(p, None) for p in apart], lr=0.1)
    for _ in range(3):
        stacked.grad = torch.cat(gradients)
        for p, g in zip(apart, gradients, strict=True):
            p.grad = g.clone()
        one.step(), many.step()
    torch.testing.assert_close(stacked.detach(), torch.cat(apart).detach())


def test_muon_s_update_has_adam_s_usual_size_and_decays_weights():
    weight = torch.nn.Parameter(torch.zeros(64, 32))
    weight.grad = torch.randn(64, 32)
    Muon([(weight, None)], lr=1.0, weight_decay=0.0).step()
    assert 0.1 < weight.detach().square().mean().sqrt() < 0.3
    decayed = torch.nn.Parameter(torch.ones(4, 4))
    decayed.grad = torch.zeros(4, 4)
    Muon([(decayed, None)], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(decayed.detach(), torch.full((4, 4), 0.95))


def test_muon_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match=r"shape \(4,\) belongs to AdamW"):
        Muon([(torch.nn.Parameter(torch.zeros(4)), None)])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_in_one_group_and_only_matrices_decay(config, optimizer):
    model = Decoder(config).init_weights(0)
    names = {p: name for name, p in model.named_parameters()}
    seen: dict[str, tuple[str, float]] = {}
    for o in make_optimizers(model, TrainConfig(optimizer=optimizer, weight_decay=0.1)):
        for group in o.param_groups:
            for p in group["params"]:
                assert names[p] not in seen
                seen[names[p]] = (type(o).__name__, group["weight_decay"])
    assert seen.keys() == set(names.values())
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    experts = {name for p, name in names.items() if p.ndim == 3 and ".feed_forward." in name}
    for name, (kind, decay) in seen.items():
        assert decay == (0.1 if name in linear | experts else 0.0), name
        hidden = name in linear | experts and name != "head.weight" and not name.endswith("router.weight")
        assert kind == ("Muon" if hidden and optimizer == "muon" else "AdamW"), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_saved_moments_come_back_bit_for_bit(tmp_path, optimizer):
    config = TrainConfig(optimizer=optimizer)
    models = [Decoder(SHAPES["gqa-qk-norm"]).init_weights(0) for _ in range(2)]
    saved, loaded = (make_optimizers(m, config) for m in models)
    for _ in range(2):
        for p in models[0].parameters():
            p.grad = torch.randn_like(p)
        for o in saved:
            o.step()
    save_optimizers(saved, models[0], tmp_path / "optimizer.safetensors")
    models[1].load_state_dict(models[0].state_dict())
    load_optimizers(loaded, models[1], tmp_path / "optimizer.safetensors")
    for optimizers, model in ((saved, models[0]), (loaded, models[1])):
        for name, p in model.named_parameters():
            p.grad = torch.full_like(p, 0.01 * len(name))
        for o in optimizers:
            o.step()
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_schedules_warm_up_linearly_hold_their_ends_and_never_rise_again(schedule):
    config = TrainConfig(steps=100, warmup_steps=10, lr=2.0, min_lr_ratio=0.1, schedule=schedule, decay_fraction=0.25)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(2.0 if schedule == "constant" else 0.2)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    if schedule == "wsd":
        assert rates[70] == pytest.approx(2.0) and rates[85] < 2.0
    if schedule == "cosine":
        middle = 10 + 89 / 2
        assert (rates[int(middle)] + rates[int(middle) + 1]) / 2 == pytest.approx(1.1, abs=1e-3)


def test_a_schedule_survives_extremes():
    for config in (
        TrainConfig(steps=1, warmup_steps=0),
        TrainConfig(steps=3, warmup_steps=10),
        TrainConfig(steps=5, warmup_steps=0, schedule="wsd", decay_fraction=0.0),
    ):
        assert all(0 < learning_rate(config, step) <= config.lr for step in range(config.steps))
