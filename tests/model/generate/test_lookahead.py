"""Lookahead decoding gives greedy's text, token for token, whatever its window and its pool hold.

Models are random, in fp32: no two logits tie within rounding in the texts here; where they did, rows of other lengths
could choose the other one.
"""

from dataclasses import replace

import pytest
import torch
from small_models import SHAPES, TWO_WAY, lively, random_tokens

from model.decoder import Decoder
from model.errors import UserError
from model.generate.by_kind import generate, stream
from model.generate.decoding import Decoding
from model.generate.method import Tools

PROMPTS = [random_tokens(n, seed=n).tolist() for n in (3, 1, 11, 7)] + [[5, 6, 7, 5, 6, 7, 5, 6]]
STOPS = tuple(range(6))
PLAIN = Decoding(temperature=0.0, max_new_tokens=24, stops=STOPS)


def test_its_text_is_greedy_s_own(causal_model: Decoder) -> None:
    """Of every mixer."""
    expected = generate(causal_model, PROMPTS, PLAIN)
    given = generate(causal_model, PROMPTS, replace(PLAIN, kind="lookahead"))
    for one, other in zip(given, expected, strict=True):
        assert (one.tokens, one.finish) == (other.tokens, other.finish)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
        assert one.sampled_logprobs == [0.0] * len(one.tokens)
    assert sum(one.accepted for one in given) < sum(one.drafted for one in given)


@pytest.mark.parametrize("name", ["llama", "window", "mamba2", "mamba2-hybrid"])
@pytest.mark.parametrize("options", ["window=1,ngram=2,guesses=1", "window=7,ngram=3,guesses=2", "window=3,ngram=6"])
def test_so_it_is_for_every_size_of_its_window_and_pool(name: str, options: str) -> None:
    model = lively(SHAPES[name])
    prompts = [random_tokens(1 + n % 9, seed=n).tolist() for n in range(10)]
    expected = [one.tokens for one in generate(model, prompts, PLAIN)]
    given = generate(model, prompts, replace(PLAIN, kind=f"lookahead:{options}"))
    assert [one.tokens for one in given] == expected


def test_penalties_a_minimum_and_top_log_probabilities_count_as_in_greedy() -> None:
    model = lively(SHAPES["window-gqa-global"])
    way = replace(PLAIN, repetition_penalty=1.3, presence_penalty=0.4, min_new_tokens=8, top_logprobs=2)
    for one, other in zip(
        generate(model, PROMPTS, replace(way, kind="lookahead")), generate(model, PROMPTS, way), strict=True
    ):
        assert one.tokens == other.tokens and len(one.tokens) >= 8
        assert [[id_ for id_, _ in top] for top in one.top] == [[id_ for id_, _ in top] for top in other.top]
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


def test_a_text_that_repeats_itself_takes_fewer_steps_and_streams_as_it_is() -> None:
    model, steps = lively(SHAPES["llama"]), []
    hook = model.register_forward_pre_hook(lambda *_: steps.append(1))
    decoding = Decoding(kind="lookahead", temperature=0.0, max_new_tokens=40)
    (whole,) = generate(model, [PROMPTS[0]], decoding)
    hook.remove()
    assert len(whole.tokens) == 40 and len(steps) == 1 + 40 - whole.accepted < 36
    tokens = list(stream(model, PROMPTS[0], decoding))
    assert [token.id for token in tokens] == whole.tokens
    assert sum(token.accepted for token in tokens) == whole.accepted
    assert sum(token.drafted for token in tokens) == whole.drafted


def test_its_window_finds_what_the_text_has_not_had() -> None:
    """Of a model that sees one token, whose texts here don't repeat themselves: what was looked up would be nothing."""
    one_token = replace(SHAPES["window"], window=1, tie_embeddings=False, vocab_size=4000, d_model=64)
    model = lively(one_token)
    prompts = [random_tokens(4, seed=n, vocab_size=4000).tolist() for n in range(8)]
    for kind, found in (("lookup", False), ("lookahead:window=5", True)):
        given = generate(model, prompts, Decoding(kind=kind, temperature=0.0, max_new_tokens=24))
        assert all(len({*one.tokens}) == 24 for one in given)
        assert (sum(one.accepted for one in given) > 10) == found


class Sixth:
    """Ends a text at its sixth token, and lets no odd one come."""

    def __init__(self) -> None:
        self.heard = 0

    def allowed(self) -> torch.Tensor:
        return torch.arange(97) % 2 == 0

    def take(self, token: int) -> bool:
        self.heard += 1
        assert self.heard <= 6, "it hears of nothing after its end"
        return self.heard == 6


def test_a_watcher_ends_a_text_among_its_guesses() -> None:
    model, plain = lively(SHAPES["mamba2-hybrid"]), Decoding(temperature=0.0, max_new_tokens=20)
    given = generate(model, PROMPTS, replace(plain, kind="lookahead"), tools=Tools(watch=Sixth))
    expected = generate(model, PROMPTS, plain, tools=Tools(watch=Sixth))
    assert [(one.tokens, one.finish) for one in given] == [(one.tokens, "stop") for one in expected]


@pytest.mark.parametrize("name", ["gpt2", "window", "lfm2"])
def test_a_text_ends_where_the_context_does(name: str) -> None:
    model, prompts = lively(SHAPES[name]), [[1] * n for n in (3, 50, 60, 64)]
    plain = Decoding(max_new_tokens=12, temperature=0.0)
    given = generate(model, prompts, replace(plain, kind="lookahead"))
    assert [len(one.tokens) for one in given] == [12, 12, 5, 1]
    assert [one.tokens for one in given] == [one.tokens for one in generate(model, prompts, plain)]


def test_what_cannot_be_is_refused() -> None:
    for options in ({}, {"temperature": 0.0, "temperature_schedule": "linear:to=0"}):
        with pytest.raises(UserError, match="lookahead takes the likeliest token each time: it needs temperature = 0"):
            Decoding(kind="lookahead", **options)
    for option, least in (("window=0", 1), ("ngram=1", 2), ("guesses=0", 1)):
        with pytest.raises(UserError, match=f"must be at least {least}"):
            Decoding(kind=f"lookahead:{option}", temperature=0.0)
    with pytest.raises(UserError, match="a diffusion model doesn't have"):
        generate(lively(TWO_WAY["two-way"]), [[1]], Decoding(kind="lookahead", temperature=0.0))
