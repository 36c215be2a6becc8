"""Distributions that are drawn from, against definitions on sorted lists; draws against their distribution."""

import math

import pytest
import torch

from model.errors import UserError
from model.generate import sampling
from model.generate.decoding import GREEDY, Decoding
from model.generate.history import History
from model.generate.sampling import check_drawn, distribution, draw, uniform
from model.seeds import int64

LOGITS = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)) * 2


def after(prompts: list[list[int]], outputs: list[list[int]], decoding: Decoding, vocab_size: int = 12) -> History:
    """The history of rows that have written `outputs`, all of one length."""
    history = History.begin(prompts, [0] * len(prompts), decoding, vocab_size, torch.device("cpu"))
    for tokens in zip(*outputs, strict=True):
        history.take(torch.tensor(tokens))
    return history


def by_hand(logits: list[float], s: Decoding) -> list[float]:
    """Temperature, then each truncation on the distribution that the one before left."""
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
    "decoding",
    [
        Decoding(),
        Decoding(temperature=0.6),
        Decoding(top_k=3),
        Decoding(top_k=100),
        Decoding(top_p=0.7),
        Decoding(top_p=1e-6),
        Decoding(min_p=0.2),
        Decoding(temperature=1.5, top_k=8, top_p=0.8, min_p=0.1),
    ],
    ids=str,
)
def test_the_distribution_follows_its_definition(decoding):
    given = distribution(LOGITS, decoding).exp()
    for row in range(5):
        assert given[row].tolist() == pytest.approx(by_hand(LOGITS[row].tolist(), decoding), abs=1e-6)


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-45, 5e-324])
def test_the_coldest_temperature_is_the_largest_logit_alone(temperature):
    for scale in (1e-3, 1.0, 1e30):
        given = distribution(LOGITS * scale, Decoding(temperature=temperature))
        assert torch.equal(given.exp().round(decimals=3), distribution(LOGITS, GREEDY).exp())
    tied = torch.tensor([[3.0, 3.0, 1.0]])
    assert distribution(tied, Decoding(temperature=temperature)).exp().tolist() == [[0.5, 0.5, 0.0]]


@pytest.mark.parametrize("temperature", [1e30, 1e38, 1e39, 1.7e308])
def test_the_hottest_temperature_is_uniform(temperature):
    given = distribution(LOGITS, Decoding(temperature=temperature, top_p=0.999999))
    assert torch.allclose(given.exp(), torch.full_like(LOGITS, 1 / 12))


@pytest.mark.parametrize("options", [{"top_p": 5e-324}, {"top_p": 1e-30}, {"min_p": 1.0}, {"top_k": 1}])
def test_however_little_is_kept_the_likeliest_is(options):
    assert torch.equal(distribution(LOGITS, Decoding(**options)), distribution(LOGITS, GREEDY))


def test_any_integer_is_a_seed():
    given = [2**63 - 1, 2**63, 2**64, 2**70 + 1, 10**40, -1, -(2**63), -(2**63) - 1, 7]
    made = [int64(seed) for seed in given]
    assert all(-(2**63) <= new < 2**63 and (new - old) % 2**64 == 0 for new, old in zip(made, given, strict=True))
    assert (int64(7), int64(-7)) == (7, -7)
    assert torch.isfinite(uniform(torch.tensor(made), 3)).all()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_has_no_probability_is_an_error(wrong):
    fine, broken = torch.zeros(3), torch.tensor([0.0, wrong, 0.0])
    check_drawn(fine, fine, GREEDY)
    with pytest.raises(UserError, match="weights are damaged, or its training diverged"):
        check_drawn(broken, fine, GREEDY)
    with pytest.raises(UserError, match="repetition_penalty = 1e-45"):
        check_drawn(fine, -broken, Decoding(repetition_penalty=1e-45))


def test_greedy_is_the_distribution_of_the_largest_alone():
    given = distribution(LOGITS, GREEDY)
    assert given.argmax(-1).tolist() == LOGITS.argmax(-1).tolist()
    assert given.exp().sum(-1).tolist() == [1.0] * 5 and (given.exp() == 1).sum() == 5


def test_the_repetition_penalty_divides_what_is_positive_and_multiplies_what_is_not():
    logits, decoding = torch.tensor([[2.0, -2.0, 2.0, -2.0]]), Decoding(repetition_penalty=2.0)
    given = distribution(logits, decoding, after([[0, 1]], [[]], decoding, 4))
    torch.testing.assert_close(given, torch.tensor([[1.0, -4.0, 2.0, -2.0]]).log_softmax(-1))


def test_draws_follow_the_distribution():
    """Chi-square of 100k draws over the 12 tokens; the seeds differ and the step, in turn."""
    n = 100_000
    rows = distribution(LOGITS[:1], Decoding(top_p=0.95)).expand(n, -1)
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


def test_the_nucleus_ends_as_soon_as_it_has_its_mass():
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert distribution(logits, Decoding(top_p=0.5)).exp().tolist() == [[1.0, 0.0, 0.0]]
    assert distribution(logits, Decoding(top_p=0.51)).exp().gt(0).tolist() == [[True, True, False]]


def test_the_largest_number_draws_no_impossible_token(monkeypatch):
    monkeypatch.setattr(sampling, "uniform", lambda seeds, step: torch.full(seeds.shape, 1.0, dtype=torch.float64))
    rows = torch.tensor([[0.3, 0.7, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]).log()
    assert draw(rows, torch.arange(3), 0).tolist() == [1, 1, 3]
