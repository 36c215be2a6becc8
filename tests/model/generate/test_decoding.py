"""The options of generation: ranges, what they are by default, and how they are read from texts and numbers."""

import math
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from model.errors import UserError
from model.generate.decoding import CHAT, GREEDY, OPTIONS, TEXT, TYPES, Decoding
from model.generate.history import History
from model.generate.option import allowed, option
from model.generate.sampling import distribution
from model.generate.unmasking import Unmasking


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0 must be at least 1. Tokens to generate"),
        ({"temperature": -1.0}, "temperature = -1.0 must be at least 0. "),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_p": 0.0}, "top_p = 0.0 must be above 0 and at most 1. "),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 2.0}, "min_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"stops": ("a", "")}, "stops has an empty text"),
        ({"steps": -1}, "steps"),
        ({"block_length": -2}, "block_length"),
        ({"order": "rondom"}, "did you mean 'random'"),
        ({"stops": (-1,)}, "stops has -1"),
        ({"typical_p": 0.0}, "typical_p = 0.0 must be above 0 and at most 1"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens = 9 is more than max_new_tokens = 8"),
        ({"logit_bias": ("5",)}, "logit_bias = '5' must be ID=NUMBER"),
        ({"logit_bias": ("a=1",)}, "logit_bias = 'a=1'"),
        ({"logit_bias": ("-1=1",)}, "logit_bias = '-1=1'"),
        ({"logit_bias": ("1=nan",)}, "logit_bias = '1=nan'"),
        ({"logit_bias": ("1=inf",)}, "logit_bias = '1=inf'"),
        ({"temperature_schedule": "liner:to=1"}, "temperature_schedule = 'liner' is not one of"),
        ({"temperature_schedule": "linear:to=-1"}, "temperature_schedule = 'linear': to = -1.0 must be at least 0"),
        ({"temperature_schedule": "linear:to=x"}, "to = 'x' must be a number"),
        ({"temperature_schedule": "linear:over=1.5"}, "over = '1.5' must be a whole number"),
        ({"temperature_schedule": "linear:ower=1"}, "Did you mean 'over'"),
        ({"temperature_schedule": "linear:to"}, "'to' must be KEY=VALUE"),
        ({"temperature_schedule": "linear:to=1,to=2"}, "says to twice"),
        ({"temperature_schedule": "constant:to=1"}, "a constant one has no options"),
        ({"kind": "bean"}, "decoding = 'bean' is not one of 'plain'"),
        ({"kind": "plain:n=2"}, "plain has no options"),
        ({"stops": (1 << 63,)}, "no token's id"),
        *(
            ({name: value}, f"{name} = {value}")
            for name, kind in TYPES.items()
            for value in (math.nan, math.inf, -math.inf, True)
            if kind in (int, float)
        ),
        *(({name: 2.5}, f"{name} = 2.5 must be a whole number") for name, kind in TYPES.items() if kind is int),
        ({"temperature": 10**400}, "temperature = 1000"),
    ],
)
def test_what_is_out_of_its_range_is_the_person_s_mistake(given, message):
    with pytest.raises(UserError) as error:
        Decoding(**given)
    assert message in str(error.value)
    if given.keys() <= {f.name for f in fields(Unmasking)}:
        with pytest.raises(UserError, match=next(iter(given))):
            Unmasking(**given)


def test_what_is_allowed_is_said_in_the_words_of_the_refusal():
    said = {f.name: allowed(f) for f in OPTIONS}
    assert said["top_p"] == "above 0 and at most 1" and said["temperature"] == "at least 0"
    assert said["order"] == "confidence or random" and said["seed"] == said["stops"] == ""


def test_the_ends_of_the_ranges_are_allowed():
    Decoding(max_new_tokens=1, temperature=0.0, top_p=1.0, min_p=1.0)
    Decoding(min_p=0.0, top_p=1e-9, top_k=0, steps=0, block_length=0)


def test_by_default_nothing_is_truncated_or_held_down():
    """Policy optimisation samples so: its importance ratio has no bias only then."""
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)) * 3
    history = History.begin([[1], [2], [3]], [0, 1, 2], Decoding(), 40, logits.device)
    assert torch.equal(distribution(logits, Decoding(), history), logits.log_softmax(-1))


def test_what_people_see_by_default():
    assert Decoding(max_new_tokens=64, temperature=0.8, top_p=0.95) == TEXT
    assert Decoding(max_new_tokens=128, temperature=0.7, top_p=0.95) == CHAT
    assert Decoding(temperature=0.0) == GREEDY


def test_every_option_is_described_once_and_has_a_plain_type():
    assert {f.name for f in OPTIONS} == {f.name for f in fields(Decoding)} == TYPES.keys()
    assert all(f.metadata["description"].endswith(".") for f in OPTIONS)
    assert set(TYPES.values()) <= {int, float, str, tuple}
    with pytest.raises(TypeError, match="ge, gt, le, not lt"):
        option(0, "A number.", lt=3)


def test_options_are_read_from_whatever_a_service_passes_on():
    given = {"max_new_tokens": np.int64(5), "temperature": "0.5", "stops": np.array(["a", "b"]), "steps": None, "x": 1}
    assert TEXT.read(given) == replace(TEXT, max_new_tokens=5, temperature=0.5, stops=("a", "b"))
    assert isinstance(TEXT.read(given).max_new_tokens, int) and TEXT.read({"temperature": 0}).temperature == 0
    assert TEXT.read({"stops": "ab"}).stops == ("ab",)
    with pytest.raises(UserError, match="top_p"):
        TEXT.read({"top_p": 2})
    assert TEXT.read({"seed": 2**70, "top_k": 3.0}) == replace(TEXT, seed=2**70, top_k=3)
    for name in ("max_new_tokens", "seed", "steps"):
        for value in (2.5, "2.5", "many", math.nan, math.inf, True, [1]):
            with pytest.raises(UserError, match=rf"{name} = .* must be a whole number"):
                TEXT.read({name: value})
    for value in ("warm", "nan", "inf", [1], False):
        with pytest.raises(UserError, match=r"temperature = .* must be a number"):
            TEXT.read({"temperature": value})


def test_a_sampler_is_given_ids_alone():
    decoding = Decoding(stops=("x", 5), seed=3).ended_by([1, 2])
    assert decoding == Decoding(stops=(1, 2, 5), seed=3) and decoding.stop_ids == [1, 2, 5]
    assert Decoding(stops=("x", 5)).stop_texts == ("x",)


def test_what_is_said_of_unmasking_is_known():
    assert TEXT.unmasks == () and replace(TEXT, order="random", steps=2).unmasks == ("steps", "order")


def test_options_are_read_without_torch():
    code = "import sys, model.generate.decoding; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8").stdout
        == "False\n"
    )
