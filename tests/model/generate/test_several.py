"""Many answers and a choice among them: best of n, and the vote of self-consistency."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import SHAPES, lively

from model.errors import UserError
from model.generate.by_kind import generate
from model.generate.decoding import Decoding
from model.generate.engine import Completion
from model.generate.engine import generate as plain
from model.generate.method import Tools
from model.generate.self_consistency import Vote

STOPS = tuple(range(40))
DRAWN = Decoding(max_new_tokens=6, stops=STOPS)
PROMPTS = [[50, 60], [70], [51, 80, 90]]


def last(row: int, completion: Completion, kind: str) -> str:
    """The stop token's class is the answer: there are three, so that they meet."""
    return str(completion.tokens[-1] % 3)


def every(model: Any, n: int, decoding: Decoding = DRAWN) -> list[list[Completion]]:
    """Each prompt's n chains, by the seeds that are promised."""
    return [plain(model, [p] * n, decoding, [(9 + i) * n + j for j in range(n)]) for i, p in enumerate(PROMPTS)]


def test_the_best_of_n_is_the_likeliest_per_token() -> None:
    model = lively(SHAPES["llama"])
    found = generate(model, PROMPTS, replace(DRAWN, kind="best_of:n=5", seed=9))
    for one, drawn in zip(found, every(model, 5), strict=True):
        order = sorted(drawn, key=lambda c: -sum(c.logprobs) / len(c.logprobs))
        assert [c.tokens for c in (one, *one.others)] == [c.tokens for c in order]


@pytest.mark.parametrize("weight", ["count", "likelihood", "score"])
@pytest.mark.parametrize("at_once", [1, 4, 16])
def test_the_answer_is_that_of_all_chains_though_not_all_are_drawn(weight: str, at_once: int) -> None:
    model, n = lively(SHAPES["llama"]), 12
    scored = [0]

    def score(row: int, completion: Completion) -> float:
        scored[0] += 1
        return 1 / (1 + completion.tokens[-1])

    decoding = replace(DRAWN, kind=f"self_consistency:n={n},weight={weight},at_once={at_once}", seed=9)
    tools = Tools(answer=last, score=score)
    found = generate(model, PROMPTS, decoding, tools=tools)
    fewer = 0
    for row, (one, chains) in enumerate(zip(found, every(model, n), strict=True)):
        votes: Counter[str] = Counter()
        for chain in chains:
            likely = 2.718281828459045 ** (sum(chain.logprobs) / len(chain.logprobs))
            weigh = {"count": 1.0, "likelihood": likely, "score": 1 / (1 + chain.tokens[-1])}[weight]
            if chain.finish == "stop":
                votes[last(row, chain, "task")] += weigh  # type: ignore[assignment]
        winner = votes.most_common(1)[0][0]
        assert last(row, one, "task") == winner
        drawn = [chain.tokens for chain in chains[: 1 + len(one.others)]]
        assert sorted([one.tokens, *(o.tokens for o in one.others)]) == sorted(drawn)
        fewer += len(one.others) + 1 < n
    assert fewer or at_once > 1 or weight != "count", "the case must have votes that are decided early"
    assert not fewer or at_once < n
    assert (scored[0] > 0) == (weight == "score")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1)), min_size=1, max_size=12))
def test_a_vote_is_decided_only_when_the_rest_cannot_change_it(chains: list[tuple[str, float]]) -> None:
    vote = Vote()
    early: str | None = None
    for i, (answer, weight) in enumerate(chains):
        if early is None and vote.decided(len(chains) - i):
            early = max(vote.weights, key=vote.weights.__getitem__)
        vote.add(Completion([ord(answer)]), answer, weight)
    assert early is None or chr(vote.won().tokens[0]) == early


def test_a_chain_that_was_cut_off_has_no_vote() -> None:
    model = lively(SHAPES["llama"])
    decoding = Decoding(kind="self_consistency:n=3", max_new_tokens=2)
    (one,) = generate(model, [[5]], decoding, tools=Tools(answer=lambda *_: pytest.fail("no chain ended")))
    assert one.mean_logprob == max(c.mean_logprob for c in (one, *one.others))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "self_consistency", "temperature": 0.0}, "draws several answers, which temperature = 0"),
        ({"kind": "best_of:n=3", "temperature": 0.0}, "best_of:n=3 draws several answers"),
        ({"kind": "self_consistency:weight=mean"}, "weight = 'mean' is not one of 'count', 'likelihood', 'score'"),
        ({"kind": "self_consistency:at_once=0"}, "at_once = 0 must be at least 1"),
        ({"kind": "best_of:n="}, "'n=' must be KEY=VALUE"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        Decoding(**given)
    assert said in str(error.value)


def test_what_is_missing_for_a_vote_is_said() -> None:
    model, asked = lively(SHAPES["llama"]), replace(DRAWN, kind="self_consistency:n=2")
    with pytest.raises(UserError, match="what of a text is its answer"):
        generate(model, PROMPTS, asked)
    with pytest.raises(UserError, match="needs a scoring function"):
        generate(model, PROMPTS, replace(asked, kind="self_consistency:weight=score"), tools=Tools(answer=last))
