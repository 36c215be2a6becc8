"""A chat that outgrows its context loses whole turns, never its system message or a part of one, and it is said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_model import make_model

from cluster.data.tokenizer.chat import parse, render_prompt
from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.errors import UserError
from cluster.serve.context import check_prompt, fit
from cluster.serve.generator import Generator

SYSTEM = {"role": "system", "content": "Be brief."}


def turns(count: int, size: int = 8) -> list[dict[str, str]]:
    """A user's messages and their answers; the last has none yet."""
    made = []
    for number in range(count):
        made += [{"role": "user", "content": f"{number}" + "q" * size}]
        made += [{"role": "assistant", "content": f"{number}" + "a" * size}]
    return made[:-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), max_seq_len=96)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 30),
    size=st.integers(0, 30),
    system=st.booleans(),
    context=st.integers(60, 400),
    new=st.integers(1, 500),
)
def test_what_is_left_is_the_system_message_and_the_last_whole_turns(
    tokenizer: Tokenizer, count: int, size: int, system: bool, context: int, new: int
) -> None:
    first = [SYSTEM] if system else []
    messages = [*first, *turns(count, size)]
    ids, said = fit(tokenizer, messages, context, new)
    room = context - min(new, context // 2)
    kept = parse(tokenizer, ids)[:-1]  # the last is the answer, not yet begun
    assert kept[: len(first)] == first
    gone = (len(messages) - len(kept)) // 2
    assert kept[len(first) :] == messages[len(first) + 2 * gone :], "whole turns, from the first on"
    assert ids == render_prompt(tokenizer, kept)
    assert len(ids) <= room or (gone == count - 1 and len(ids) < context)
    if gone:
        fewer = [*first, *messages[len(first) + 2 * (gone - 1) :]]
        assert len(render_prompt(tokenizer, fewer)) > room, "no more than must"
    assert bool(said) == bool(gone)
    assert (f"first {gone} turn" in said) == bool(gone)


@pytest.mark.parametrize("before", [[], [SYSTEM], [SYSTEM, *turns(5), {"role": "assistant", "content": "a"}]])
def test_one_message_that_is_too_long_is_refused_in_words(tokenizer: Tokenizer, before: list[dict[str, str]]) -> None:
    alone = [m for m in before[:1] if m["role"] == "system"]
    fixed = len(render_prompt(tokenizer, [*alone, {"role": "user", "content": ""}]))
    fits, too_long = ([*before, {"role": "user", "content": "q" * n}] for n in (95 - fixed, 96 - fixed))
    assert len(fit(tokenizer, fits, 96, 64)[0]) == 95
    with pytest.raises(UserError, match=r"last message.* has 96 tokens, but the model's context is 96.*shorten it"):
        fit(tokenizer, too_long, 96, 64)


def test_a_text_keeps_its_end_and_it_is_said(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokenizer.encode("word " * 50, bos=True)
    ids, said = fit(tokenizer, "word " * 50, 96, 16)
    assert ids == [whole[0], *whole[-79:]]
    assert f"has {len(whole)} tokens, and the context is 96: without its first {len(whole) - 80}" in said
    monkeypatch.setattr(tokenizer, "adds_bos", False)
    assert fit(tokenizer, "word " * 50, 96, 16)[0] == whole[-80:]
    assert fit(tokenizer, "word", 96, 16) == (tokenizer.encode("word"), "")


def test_a_recipe_s_prompts_are_not_cut_at_all(tokenizer: Tokenizer) -> None:
    check_prompt(tokenizer, "word", 96, 16)
    check_prompt(tokenizer, turns(2), 96, 16)
    for prompt in ("word " * 50, turns(30)):
        with pytest.raises(UserError, match="Shorten it"):
            check_prompt(tokenizer, prompt, 96, 16)


@pytest.mark.parametrize("way", ["chat", "stream", "pyfunc"])
def test_a_generator_says_what_it_leaves_out(folder: Path, caplog: pytest.LogCaptureFixture, way: str) -> None:
    generator = Generator(folder, "cpu")

    def ask(messages: Any) -> Any:
        if way == "pyfunc":
            from cluster.serve.pyfunc import TokenmillModel

            model = TokenmillModel()
            model.generator = generator
            return model.predict(None, messages)
        return "".join(generator.stream(messages)) if way == "stream" else generator.chat(messages)

    with caplog.at_level(logging.WARNING):
        ask(turns(1))
        assert not caplog.records
        ask([SYSTEM, *turns(30)])
    assert [r.message for r in caplog.records if "turns are left out" in r.message]
    said: list[str] = []
    generator.say = said.append
    ask([SYSTEM, *turns(30)])
    assert len(said) == 1
    with pytest.raises(UserError, match="shorten it"):
        ask([{"role": "user", "content": "q" * 200}])


@pytest.mark.parametrize("context", [2, 3, 40])
def test_of_a_text_that_is_cut_the_beginning_s_token_and_the_end_are_left(tokenizer: Tokenizer, context: int) -> None:
    text = "quick brown fox " * 20
    whole = tokenizer.encode(text, bos=True)
    ids, said = fit(tokenizer, text, context, 1)
    room = context - 1
    assert ids == ([tokenizer.bos_id, *whole[len(whole) - room + 1 :]] if room > 1 else whole[-1:])
    assert len(ids) == room and f"without its first {len(whole) - room}" in said
