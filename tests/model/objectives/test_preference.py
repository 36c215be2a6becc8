"""Preference losses against their formulas in Python floats, and by finite differences."""

import math
from functools import partial

import pytest
import torch
from small_models import SHAPES, lively, random_tokens

from model.objectives.preference import (
    PreferenceBatch,
    PreferenceConfig,
    pair_logprobs,
    preference,
    preference_loss,
)

CONFIGS = [
    PreferenceConfig("dpo", beta=0.3),
    PreferenceConfig("dpo", beta=0.3, label_smoothing=0.1),
    PreferenceConfig("ipo", beta=0.2),
    PreferenceConfig("simpo", beta=2.5, gamma=1.0),
]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def by_hand(c, r, ref_c, ref_r, n_c, n_r, config) -> float:
    if config.loss == "simpo":
        return softplus(-(config.beta * (c / n_c - r / n_r) - config.gamma))
    if config.loss == "ipo":
        return ((c - ref_c) / n_c - (r - ref_r) / n_r - 1 / (2 * config.beta)) ** 2
    h = config.beta * ((c - ref_c) - (r - ref_r))
    return (1 - config.label_smoothing) * softplus(-h) + config.label_smoothing * softplus(h)


def make() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    sums = -5 * torch.rand(4, 4, generator=generator, dtype=torch.double)
    lengths = torch.randint(1, 9, (4, 2), generator=generator)
    return sums[:, 0], sums[:, 1], sums[:, 2:], lengths


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.loss}-{c.label_smoothing}")
def test_losses_follow_their_formulas(config):
    chosen, rejected, reference, lengths = make()
    losses, _ = preference_loss(chosen, rejected, reference, lengths, config)
    for i in range(4):
        values = [float(x) for x in (chosen[i], rejected[i], *reference[i], *lengths[i])]
        assert float(losses[i]) == pytest.approx(by_hand(*values, config), rel=1e-9)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.loss}-{c.label_smoothing}")
def test_gradients_equal_finite_differences(config):
    chosen, rejected, reference, lengths = make()
    inputs = (chosen.clone().requires_grad_(), rejected.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda c, r: preference_loss(c, r, reference, lengths, config)[0], inputs)


def test_at_the_reference_dpo_starts_from_log_two_and_a_step_prefers_the_chosen():
    model = lively(SHAPES["llama"])
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[:, 5:] = True
    short = mask.clone()
    short[:, 9:] = False
    empty = PreferenceBatch(random_tokens(3, 12), mask, random_tokens(3, 12, seed=1), short, torch.zeros(3, 2))
    with torch.no_grad():
        batch = empty._replace(reference_P2=pair_logprobs(model, empty))
    objective = partial(preference, config=PreferenceConfig("dpo", beta=0.5))
    loss, count, _ = objective(model, batch)
    assert float(loss.detach() / count) == pytest.approx(math.log(2), abs=1e-4)
    (loss / count).backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.01 * p.grad
        after, _, extras = objective(model, batch)
    assert float(after / count) < math.log(2) - 0.01 and float(extras["accuracy"]) == 3
