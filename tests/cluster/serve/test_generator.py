"""What a generator makes of a model's tokens: stops, streams, and options that a model doesn't have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import make_model

from cluster.errors import UserError
from cluster.serve.generator import Generator
from cluster.serve.stops import cut, settled
from model.generate.decoding import TEXT
from model.generate.engine import stream

PROMPTS = ["The quick", [{"role": "user", "content": "What is 3 + 4?"}]]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator(make_model(tmp_path_factory.mktemp("model")), "cpu")


@pytest.mark.parametrize(
    ("text", "stops", "left", "found"),
    [
        ("one two", (), "one two", False),
        ("one two", ("x",), "one two", False),
        ("one two", ("t",), "one ", True),
        ("one two", ("two", "ne"), "o", True),
        ("abc", ("abc", "b"), "a", True),  # b is complete before abc is
        ("abc", ("bc", "abc"), "", True),
        ("", ("a",), "", False),
    ],
)
def test_a_text_ends_before_the_stop_that_is_complete_first(
    text: str, stops: tuple[str, ...], left: str, found: bool
) -> None:
    assert cut(text, stops) == (left, found)


def test_a_stop_that_is_complete_too_early_is_none() -> None:
    for after, left in ((0, "a"), (1, "a"), (2, "abxxa"), (5, "abxxa"), (6, "abxxab")):
        assert cut("abxxab", ("b",), after) == (left, left != "abxxab")
    assert cut("abxx", ("abx",), 2) == ("", True), "its end counts"


def test_what_may_begin_a_stop_is_held_back() -> None:
    assert settled("one ##", ("###",)) == "one "
    assert settled("one ab", ("abc", "b1")) == "one "
    assert settled("one", ("x",)) == settled("one", ()) == "one"


@pytest.mark.parametrize("prompt", PROMPTS, ids=["text", "messages"])
def test_a_stream_is_what_generate_returns_with_stops_and_without(generator: Generator, prompt: Any) -> None:
    whole = generator.generate([prompt], seed=2)[0]
    assert len(whole) > 20, "the case must be long"
    for stops in ((), (whole[8:11],), (whole[5:6], whole[4:9]), (whole[-3:],), ("\ufffd", whole[10:30])):
        text = generator.generate([prompt], seed=2, stops=stops)[0]
        pieces = list(generator.stream(prompt, seed=2, stops=stops))
        assert "".join(pieces) == text == cut(whole, stops)[0]
        assert all(pieces) and (not stops or len(text) < len(whole) or stops[0] not in whole)


def test_a_stream_draws_no_token_after_a_stop(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generator.complete("The quick", seed=2)
    calls = []
    forward = generator.model.forward
    monkeypatch.setattr(generator.model, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    list(generator.stream("The quick", seed=2, stops=(whole[4:7],)))
    assert len(calls) < 20


def test_a_token_s_id_ends_a_text_too(generator: Generator) -> None:
    drawn = stream(generator.model, generator.encode("The quick", 64), replace(TEXT, seed=2))
    tokens = [token.id for token in drawn]
    at = next(i for i in range(4, len(tokens)) if tokens[i] not in tokens[:i])
    expected = generator.tokenizer.decode(tokens[:at])
    assert generator.complete("The quick", seed=2, stops=(tokens[at],)) == expected
    assert "".join(generator.stream("The quick", seed=2, stops=(tokens[at],))) == expected


def test_each_prompt_of_a_batch_has_its_own_seed(generator: Generator) -> None:
    texts = generator.generate(["The quick"] * 3, TEXT, seed=5)
    assert len(set(texts)) == 3
    assert texts == [generator.complete("The quick", TEXT, seed=5 + i) for i in range(3)]


def test_a_causal_model_unmasks_nothing(generator: Generator) -> None:
    with pytest.raises(UserError, match="steps and order: for diffusion models"):
        generator.complete("a", steps=3, order="random")
    with pytest.raises(UserError, match="block_length: for diffusion models"):
        list(generator.stream("a", block_length=3))


def test_a_prompt_too_long_keeps_its_end_with_room_to_answer(generator: Generator) -> None:
    limit = generator.model.config.max_seq_len
    whole = generator.tokenizer.encode("word " * 500, bos=True)
    assert generator.encode("word " * 500, 16) == [whole[0], *whole[-(limit - 16 - 1) :]]
    assert len(generator.encode("word " * 500, 10 * limit)) == limit - limit // 2
    assert generator.encode("a", 16) == generator.tokenizer.encode("a", bos=True)


def test_the_module_imports_no_heavy_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys, cluster.serve.generator; "
        "print([m for m in ('mlflow', 'torch', 'ray', 'sqlalchemy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3], encoding="utf-8"
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("prompt", PROMPTS, ids=["text", "messages"])
def test_a_row_ends_at_a_stop_that_is_amid_tokens(generator: Generator, prompt: Any) -> None:
    """The stop begins in one token and ends in another, and nothing is drawn after it."""
    whole = generator.answers([prompt], seed=2)[0]
    pieces = [generator.piece(token) for token in whole.completion.tokens]
    clear = [bool(piece) and "\ufffd" not in piece for piece in pieces]
    at = next(i for i in range(3, len(pieces)) if clear[i] and clear[i + 1])
    stop = pieces[at][-1] + pieces[at + 1][0]
    first = next(i for i in range(60) if stop in generator.tokenizer.decode(whole.completion.tokens[: i + 1]))
    answer = generator.answers([prompt], seed=2, stops=(stop,))[0]
    assert answer.completion.tokens == whole.completion.tokens[: first + 1] and answer.completion.finish == "stop"
    assert answer.text == whole.text[: whole.text.index(stop)]
    long = generator.answers([prompt], seed=2, min_new_tokens=20)[0]
    early = long.text[1:3]
    later = generator.answers([prompt], seed=2, stops=(early,), min_new_tokens=20)[0]
    assert later.completion.tokens[:20] == long.completion.tokens[:20] and later.text.startswith(long.text[:3])


def test_an_answer_says_what_it_took(generator: Generator) -> None:
    drawn = generator.answers(["The quick"], seed=2, max_new_tokens=9, top_logprobs=2)[0]
    pieces = list(generator.stream("The quick", seed=2, max_new_tokens=9, top_logprobs=2))
    streamed = generator.last
    assert streamed and "".join(pieces) == streamed.text == drawn.text
    for one in (drawn, streamed):
        said = json.loads(json.dumps(one.report(generator.piece)))
        assert len(said["tokens"]) == len(said["logprobs"]) == said["new_tokens"] == said["steps"] == 9
        assert said["tokens"] == drawn.completion.tokens and said["text"] == drawn.text and said["finish"] == "length"
        assert said["tokens_per_second"] > 0 and "others" not in said
        assert [len(top) for top in said["top_logprobs"]] == [2] * 9
        assert one.words().startswith("(9 tokens in 9 steps, ") and len(one.table(generator.piece)) == 9
    whole = generator.model.logits(
        generator.model(torch.tensor([[*generator.encode("The quick", 9), *said["tokens"]]]))[0]
    )
    best = whole[0, -10:-1].argmax(-1).tolist()
    assert [top[0]["id"] for top in said["top_logprobs"]] == best


@pytest.mark.parametrize("kind", ["best_of:n=3", "beam:n=3", "self_consistency:n=3"])
def test_every_kind_is_reached_by_its_word(generator: Generator, kind: str) -> None:
    for prompt in PROMPTS:
        answer = generator.answers([prompt], TEXT, kind=kind, seed=1, max_new_tokens=12, stops=("e",))[0]
        assert len(answer.others) == 2 and len(answer.report(generator.piece)["others"]) == 2
        assert "the best of 3 answers" in answer.words() and "e" not in answer.text
        assert answer.text == "".join(
            generator.stream(prompt, TEXT, kind=kind, seed=1, max_new_tokens=12, stops=("e",))
        )
