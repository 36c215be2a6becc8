"""What shapes and cuts a distribution, against transformers' processors of the same names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.generation import logits_process as theirs

from model.errors import UserError
from model.generate.decoding import Decoding
from model.generate.history import History
from model.generate.sampling import choose, distribution, draw

V, ROWS = 50, 6
LOGITS = torch.randn(ROWS, V, generator=torch.Generator().manual_seed(0)) * 3
PROMPTS = [[i, i + 1, 7] for i in range(ROWS)]
OUTPUTS = torch.tensor([[i, 20, 20, 40 + i] for i in range(ROWS)])


def history(decoding: Decoding) -> History:
    """Of rows that have written OUTPUTS."""
    made = History.begin(PROMPTS, range(ROWS), decoding, V, torch.device("cpu"))
    for tokens in OUTPUTS.T:
        made.take(tokens)
    return made


STOPS = (3, 30)
EOS = {"eos_token_id": list(STOPS), "device": "cpu"}
CASES: list[tuple[dict[str, Any], list[Any]]] = [
    ({"temperature": 0.6}, [theirs.TemperatureLogitsWarper(0.6)]),
    ({"top_k": 7}, [theirs.TopKLogitsWarper(7)]),
    ({"top_p": 0.8}, [theirs.TopPLogitsWarper(0.8)]),
    ({"min_p": 0.1}, [theirs.MinPLogitsWarper(0.1)]),
    *(({"typical_p": mass}, [theirs.TypicalLogitsWarper(mass)]) for mass in (0.05, 0.3, 0.9)),
    ({"repetition_penalty": 1.7}, [theirs.RepetitionPenaltyLogitsProcessor(1.7)]),
    (
        {"logit_bias": ("5=2.5", "7=-3", "9=-inf")},
        [theirs.SequenceBiasLogitsProcessor([[[5], 2.5], [[7], -3.0], [[9], float("-inf")]])],
    ),
    ({"min_new_tokens": 5, "stops": STOPS}, [theirs.MinNewTokensLengthLogitsProcessor(3, 5, **EOS)]),
    ({"min_new_tokens": 4, "stops": STOPS}, [theirs.MinNewTokensLengthLogitsProcessor(3, 4, **EOS)]),
    (
        {"logit_bias": ("5=2.5",), "repetition_penalty": 1.2, "temperature": 1.4, "top_k": 20, "top_p": 0.9,
         "min_p": 0.02, "typical_p": 0.7},
        [theirs.SequenceBiasLogitsProcessor([[[5], 2.5]]), theirs.RepetitionPenaltyLogitsProcessor(1.2),
         theirs.TemperatureLogitsWarper(1.4), theirs.TopKLogitsWarper(20), theirs.TopPLogitsWarper(0.9),
         theirs.MinPLogitsWarper(0.02), theirs.TypicalLogitsWarper(0.7)],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "processors"), CASES, ids=[" ".join(options) for options, _ in CASES])
def test_each_is_what_transformers_makes_of_it(options: dict[str, Any], processors: list[Any]) -> None:
    decoding = Decoding(**options)
    text = torch.cat((torch.tensor(PROMPTS), OUTPUTS), 1)
    expected = LOGITS.clone()
    for processor in processors:
        expected = processor(text, expected)
    given = distribution(LOGITS, decoding, history(decoding))
    torch.testing.assert_close(given, expected.log_softmax(-1), atol=1e-5, rtol=1e-5)
    assert options.keys() & {"repetition_penalty", "min_new_tokens"} or torch.equal(given, distribution(LOGITS, decoding))


def test_presence_is_taken_off_once_and_frequency_each_time_of_the_answer_s_tokens_alone() -> None:
    decoding = Decoding(presence_penalty=0.5, frequency_penalty=-0.25)
    expected = LOGITS.clone()
    for row, tokens in enumerate(OUTPUTS.tolist()):
        for token in set(tokens):
            expected[row, token] -= 0.5 - 0.25 * tokens.count(token)
    torch.testing.assert_close(distribution(LOGITS, decoding, history(decoding)), expected.log_softmax(-1))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [2.0, 2.0, 2.0, 2.0, 2.0]),
        ("linear:to=0.5,over=4", [2.0, 1.5, 1.0, 0.5, 0.5]),
        ("linear:to=1", [2.0, 1.75, 1.5, 1.25, 1.0]),  # over max_new_tokens
        ("cosine:to=1,over=3", [2.0, 1.5, 1.0, 1.0, 1.0]),
        ("linear:to=0.5,over=1", [0.5] * 5),
    ],
)
def test_the_temperature_goes_over_the_tokens(schedule: str, expected: list[float]) -> None:
    decoding = Decoding(temperature=2.0, temperature_schedule=schedule, max_new_tokens=5)
    rows = History.begin([[1]] * 5, range(5), decoding, V, torch.device("cpu"))
    rows.drawn_B = torch.arange(5)  # rows that are at different tokens, in one step
    logits = LOGITS[:1].expand(5, -1)
    expected_BV = torch.stack([(LOGITS[0] / temperature).log_softmax(-1) for temperature in expected])
    torch.testing.assert_close(distribution(logits, decoding, rows), expected_BV)


def test_a_schedule_may_begin_or_end_at_the_likeliest_token_alone() -> None:
    for first, schedule, at in ((1.0, "linear:to=0", 63), (0.0, "linear:to=1", 0)):
        decoding = Decoding(temperature=first, temperature_schedule=schedule)
        rows = History.begin([[1]] * ROWS, range(ROWS), decoding, V, torch.device("cpu"))
        rows.drawn_B += at
        assert torch.equal(distribution(LOGITS, decoding, rows).exp(), distribution(LOGITS, Decoding(top_k=1)).exp())
        assert not decoding.greedy


def test_where_only_a_stop_may_come_the_minimum_length_gives_way() -> None:
    decoding = Decoding(min_new_tokens=9, stops=STOPS, logit_bias=tuple(f"{i}=-inf" for i in range(V) if i not in STOPS))
    drawn = choose(LOGITS, decoding, history(decoding))
    assert set(drawn.token_B.tolist()) <= set(STOPS)


def test_the_alternatives_are_the_model_s_own_likeliest_tokens() -> None:
    decoding = Decoding(temperature=0.1, top_k=2, top_logprobs=4)
    drawn = choose(LOGITS, decoding, history(decoding))
    for row, (own, given) in enumerate(zip(LOGITS.log_softmax(-1), drawn.top, strict=True)):
        best = sorted(range(V), key=lambda token: -float(own[token]))[:4]
        assert [token for token, _ in given] == best
        assert [value for _, value in given] == pytest.approx(own[best].tolist())
        assert float(drawn.logprob_B[row]) == pytest.approx(float(own[drawn.token_B[row]]))
    assert choose(LOGITS, Decoding(), history(decoding)).top == []
    assert len(choose(LOGITS, Decoding(top_logprobs=99), history(decoding)).top[0]) == V


@pytest.mark.parametrize(
    "options",
    [
        {"typical_p": 0.6},
        {"temperature": 0.5, "temperature_schedule": "linear:to=2"},
        {"presence_penalty": 1.5, "logit_bias": ("3=1",)},
    ],
)
def test_draws_follow_the_distribution(options: dict[str, Any]) -> None:
    """Chi-square of 100,000 draws: above 90 in less than 1 of 5,000 cases at 49 degrees of freedom."""
    n, decoding = 100_000, Decoding(**options)
    dist = distribution(LOGITS, decoding, history(decoding))[:1]
    expected = dist[0].double().exp() * n
    counts = torch.bincount(draw(dist.expand(n, -1), torch.arange(n), 5), minlength=V)
    often = expected >= 5
    assert counts[expected == 0].sum() == 0
    assert ((counts - expected)[often].square() / expected[often]).sum() < 90


def test_a_bias_for_a_token_that_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match="logit_bias: there is no token 50; the model has 50"):
        distribution(LOGITS, Decoding(logit_bias=("50=1",)))


def test_histories_are_parted_and_joined_as_rows_are() -> None:
    decoding = Decoding(repetition_penalty=2.0)
    whole = history(decoding)
    order = torch.tensor([4, 0, 2, 2])
    parts = whole.select(order[:1]).join(whole.select(order[1:]))
    assert torch.equal(distribution(LOGITS[order], decoding, parts), distribution(LOGITS, decoding, whole)[order])
    assert parts.seeds_B.tolist() == order.tolist() and parts.drawn_B.tolist() == [4] * 4
    before = whole.select(order)
    assert before.output_BV is not None
    kept = before.output_BV.clone()
    before.take(torch.tensor([1, 1, 1, 1]))
    assert torch.equal(whole.select(order).output_BV, kept), "a selection is its own"  # type: ignore[arg-type]
