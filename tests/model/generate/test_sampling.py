"""Laws that sampling draws from, against definitions on sorted lists; draws against their law."""

import math

import pytest
import torch

from model.generate.sampling import GREEDY, Sampling, draw, law, uniform

LOGITS = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)) * 2


def by_hand(logits: list[float], s: Sampling) -> list[float]:
    """Temperature, then each truncation on the law that the one before left."""
    p = [math.exp(x / s.temperature) for x in logits]
    total = sum(p)
    p = [x / total for x in p]

    def keep(kept):
        left = sum(p[i] for i in kept)
        return [p[i] / left if i in kept else 0.0 for i in range(len(p))]

    order = sorted(range(len(p)), key=lambda i: -p[i])
    if s.top_k:
        p = keep(order[: s.top_k])
    if s.top_p < 1:
        nucleus, mass = [], 0.0
        for i in order:
            if mass >= s.top_p:
                break
            nucleus.append(i)
            mass += p[i]
        p = keep(nucleus)
    if s.min_p:
        p = keep([i for i in order if p[i] >= s.min_p * max(p)])
    return p


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(top_k=3),
        Sampling(top_k=100),
        Sampling(top_p=0.7),
        Sampling(top_p=1e-6),
        Sampling(min_p=0.2),
        Sampling(temperature=1.5, top_k=8, top_p=0.8, min_p=0.1),
    ],
    ids=str,
)
def test_the_law_follows_its_definition(sampling):
    given = law(LOGITS, sampling).exp()
    for row in range(5):
        assert given[row].tolist() == pytest.approx(by_hand(LOGITS[row].tolist(), sampling), abs=1e-6)


def test_greedy_is_the_law_of_the_largest():
    given = law(LOGITS, GREEDY)
    assert given.argmax(-1).tolist() == LOGITS.argmax(-1).tolist()
    assert given.exp().sum(-1).tolist() == [1.0] * 5 and (given.exp() == 1).sum() == 5


def test_the_repetition_penalty_divides_what_is_positive_and_multiplies_what_is_not():
    logits, seen = torch.tensor([[2.0, -2.0, 2.0, -2.0]]), torch.tensor([[True, True, False, False]])
    given = law(logits, Sampling(repetition_penalty=2.0), seen)
    torch.testing.assert_close(given, torch.tensor([[1.0, -4.0, 2.0, -2.0]]).log_softmax(-1))


def test_draws_follow_the_law():
    """Chi-square of 100k draws over the 12 tokens; the seeds differ and the step, in turn."""
    n = 100_000
    rows = law(LOGITS[:1], Sampling(top_p=0.95)).expand(n, -1)
    expected = rows[0].double().exp() * n
    possible = expected > 0
    for seeds, step in ((torch.arange(n), 3), (torch.arange(n) * 7919, 0)):
        counts = torch.bincount(draw(rows, seeds, step), minlength=12)
        assert counts[~possible].sum() == 0
        chi2 = ((counts - expected)[possible].square() / expected[possible]).sum()
        assert chi2 < 40, "a chi-square of at most 11 degrees of freedom is above 40 in 1 of 30,000 cases"


def test_uniform_numbers_are_spread_over_seeds_and_steps_alike():
    by_seed = uniform(torch.arange(20_000), 5)
    by_step = torch.cat([uniform(torch.tensor([42]), t) for t in range(2000)])
    for numbers in (by_seed, by_step):
        assert numbers.min() >= 0 and numbers.max() < 1
        assert abs(numbers.mean() - 0.5) < 0.02 and abs(numbers.var() - 1 / 12) < 0.005
        a, b = numbers[:-1] - 0.5, numbers[1:] - 0.5
        assert abs((a * b).mean() * 12) < 0.07
    assert uniform(torch.tensor([-(2**63), 2**63 - 1]), 0).isfinite().all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ],
)
def test_impossible_settings_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**given)
