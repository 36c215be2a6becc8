"""Decoding in an evaluation: the recipe's older keys and `decoding` make one Decoding, each option said once."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cluster.evaluate.config import EvaluateConfig, TaskConfig
from cluster.identity import identity
from model.generate.decoding import CHAT, Decoding

TASK = {"name": "t", "kind": "generate", "data": "x"}


def test_samples_and_answers_are_decoded_as_they_always_were() -> None:
    config = EvaluateConfig.model_validate({"tasks": [TASK]})
    assert config.sampling == Decoding(max_new_tokens=48, temperature=0.8, top_p=0.95)
    assert config.answering(config.tasks[0]) == Decoding(max_new_tokens=64, temperature=0.0)


def test_the_recipe_s_older_keys_are_in_it() -> None:
    given = {
        "sample_tokens": 5, "temperature": 0.5, "seed": 9, "unmasking": {"steps": 3, "order": "random"},
        "tasks": [TASK | {"max_new_tokens": 6}],
    }  # fmt: skip
    config = EvaluateConfig.model_validate(given)
    unmasking: dict[str, Any] = {"steps": 3, "order": "random"}
    assert config.sampling == Decoding(max_new_tokens=5, temperature=0.5, top_p=0.95, seed=9, **unmasking)
    assert config.answering(config.tasks[0]) == Decoding(max_new_tokens=6, temperature=0.0, **unmasking)


def test_decoding_is_over_the_defaults_and_a_task_s_is_its_own() -> None:
    given = {
        "decoding": {"min_p": 0.1, "stops": ["\n\n"], "max_new_tokens": 7},
        "unmasking": {"steps": 3},
        "tasks": [TASK, TASK | {"decoding": {"temperature": 0.5, "steps": 2}}],
    }
    config = EvaluateConfig.model_validate(given)
    assert config.sampling == Decoding(
        max_new_tokens=7, temperature=0.8, top_p=0.95, min_p=0.1, stops=("\n\n",), steps=3
    )
    greedy, drawn = (config.answering(task) for task in config.tasks)
    assert greedy == Decoding(temperature=0.0, steps=3) and drawn == Decoding(temperature=0.5, steps=2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sample_tokens": 48, "decoding": {"max_new_tokens": 7}}, "decoding.max_new_tokens is sample_tokens here"),
        ({"temperature": 0.5, "decoding": {"temperature": 0.5}}, "decoding.temperature is temperature here"),
        ({"seed": 1, "decoding": {"seed": 1}}, "decoding.seed"),
        ({"unmasking": {"steps": 1}, "decoding": {"order": "random"}}, "decoding.order is unmasking here"),
        ({"tasks": [TASK | {"max_new_tokens": 3, "decoding": {"max_new_tokens": 3}}]}, "decoding.max_new_tokens"),
        ({"tasks": [TASK | {"kind": "choice", "decoding": {"seed": 3}}]}, 'decoding is for kind = "generate"'),
        ({"decoding": {"top_p": 0}}, "top_p = 0.0 must be above 0"),
        ({"decoding": {"top": 3}}, "Extra inputs"),
        ({"decoding": {"top_k": "many"}}, "valid integer"),
        ({"unmasking": {"steps": -1}}, "greater than or equal to 0"),
    ],
)
def test_what_is_said_twice_or_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        EvaluateConfig.model_validate(given)
    assert said in str(error.value)


def test_only_what_decoding_says_is_in_the_fingerprint() -> None:
    assert identity(EvaluateConfig()) == {} and "decoding" not in identity(TaskConfig.model_validate(TASK))
    config = EvaluateConfig.model_validate({"decoding": {"top_k": 4, "stops": ["a"]}})
    assert (
        EvaluateConfig().model_dump()["decoding"] == {}
        and EvaluateConfig(**config.model_dump(include={"decoding"})) == config
    )
    assert identity(config) == {"decoding": {"top_k": 4, "stops": ["a"]}}


def test_a_task_may_have_one_item_and_not_none() -> None:
    assert TaskConfig.model_validate({**TASK, "limit": 1}).limit == 1
    with pytest.raises(ValidationError, match="limit"):
        TaskConfig.model_validate({**TASK, "limit": 0})


def test_a_context_has_at_least_a_token_and_its_target() -> None:
    assert EvaluateConfig(seq_len=2).seq_len == 2
    with pytest.raises(ValidationError, match="seq_len"):
        EvaluateConfig(seq_len=1)


def test_a_kind_s_own_options_stand_beside_those_of_every_decoding() -> None:
    asked = {"kind": "self_consistency", "n": 5, "weight": "likelihood", "top_k": 3}
    config = EvaluateConfig.model_validate({"tasks": [TASK | {"decoding": asked}]})
    decoding = config.answering(config.tasks[0])
    assert decoding.kind == "self_consistency:n=5,weight=likelihood" and decoding.top_k == 3
    assert decoding.method.n == 5 and decoding.temperature == CHAT.temperature, "one that must draw isn't greedy"
    word = EvaluateConfig.model_validate({"tasks": [TASK | {"decoding": {"kind": decoding.kind, "top_k": 3}}]})
    assert word == config and identity(word) == identity(config)
    beams = EvaluateConfig.model_validate({"tasks": [TASK | {"decoding": {"kind": "beam", "n": 2}}]})
    assert beams.answering(beams.tasks[0]) == Decoding(kind="beam:n=2", temperature=0.0)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"kind": "beem"}, "decoding = 'beem' is not one of"),
        ({"kind": "beam", "m": 2}, "decoding = 'beam' has no option 'm': it has n, length_penalty"),
        ({"kind": "beam:n=2", "n": 3}, "decoding = 'beam:n=2' and n = 3: give it once"),
        ({"kind": "beam", "n": 0}, "n = 0 must be at least 1"),
        ({"kind": "self_consistency", "n": 2.5}, "n = '2.5' must be a whole number"),
        ({"kind": "self_consistency", "temperature": 0}, "draws several answers"),
        ({"kind": "plain", "n": 2}, "plain has no options"),
        ({"n": 2}, "Extra inputs"),
    ],
)
def test_a_kind_that_cannot_be_is_refused_where_the_recipe_is_read(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        EvaluateConfig.model_validate({"tasks": [TASK | {"decoding": asked}]})
    assert said in str(error.value)
