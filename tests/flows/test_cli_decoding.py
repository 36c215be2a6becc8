"""An option of generation is said once, in `Decoding`, and is then reachable from every surface."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.evaluate.config import DecodingTable, EvaluateConfig, TaskConfig
from flows.cli import app
from flows.cli.chat import chat
from flows.cli.generate import generate
from flows.recipe_read import read_recipe
from model.generate.decoding import CHAT, GREEDY, OPTIONS, TEXT, Decoding
from model.generate.option import allowed

OTHER: dict[str, Any] = {  # a value of each option that none has by default
    "max_new_tokens": 7, "temperature": 0.25, "top_k": 3, "top_p": 0.5, "min_p": 0.125, "repetition_penalty": 1.5,
    "kind": "best_of:n=2", "min_new_tokens": 2, "temperature_schedule": "linear:to=0.5", "typical_p": 0.5,
    "presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": ("3=1", "4=-inf"), "top_logprobs": 2,
    "json_schema": '{"type": "object"}', "regex": "[a-z]+", "grammar": 'start: "a"',
    "seed": 11, "stops": ("a", "b"), "steps": 2, "block_length": 4, "order": "random",
}  # fmt: skip
FLAGS = {"kind": "--decoding", "max_new_tokens": "--max-tokens", "stops": "--stop"}


class FakeGenerator:
    """Says what it was asked."""

    last = None

    def __init__(self, folder: Any = None) -> None:
        self.asked: list[Decoding] = []

    def stream(self, prompt: Any, decoding: Decoding, **changes: Any) -> Any:
        self.asked.append(replace(decoding, **changes))
        yield "one"

    def generate(self, prompts: list[Any], decoding: Decoding) -> list[str]:
        return list(self.stream(prompts, decoding))


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> FakeGenerator:
    from cluster.serve.generator import Generator

    fake = FakeGenerator()
    monkeypatch.setattr(Generator, "load", classmethod(lambda cls, model: fake))
    return fake


def words(name: str, value: Any) -> list[str]:
    flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
    values = value if isinstance(value, tuple) else (value,)
    return [word for v in values for word in (flag, str(v))]


@pytest.mark.parametrize("name", [option.name for option in OPTIONS])
def test_an_option_is_reachable_everywhere(name: str, generator: FakeGenerator) -> None:
    from mlflow.models import ModelSignature
    from mlflow.models.utils import _enforce_params_schema

    from cluster.release.package import signature
    from cluster.serve.pyfunc import TokenmillModel

    value = OTHER[name]
    seed = 1 if name != "seed" else value + 1  # a chat's first message
    result = CliRunner().invoke(app, ["generate", "m", "x", *words(name, value)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    CliRunner().invoke(app, ["chat", "m", *words(name, value)], input="hello\n", catch_exceptions=False)
    assert generator.asked == [replace(TEXT, **{name: value}), replace(CHAT, **{name: value} | {"seed": seed})]
    generator.asked.clear()

    registered = TokenmillModel()
    registered.generator = generator
    kept = ModelSignature.from_dict(signature().to_dict()).params  # as MLflow writes and reads it
    given = list(value) if isinstance(value, tuple) else value
    assert TEXT.read(_enforce_params_schema({}, kept)) == TEXT
    passed_on = _enforce_params_schema({name: given}, kept)
    registered.predict(None, ["x"], params=passed_on)
    list(registered.predict_stream(None, {"prompt": "x"}, params={name: value}))
    assert generator.asked == [replace(TEXT, **{name: value})] * 2

    table = DecodingTable(**{name: value})
    samples = replace(TEXT, max_new_tokens=48)
    assert EvaluateConfig(decoding=table).sampling == replace(samples, **{name: value})
    task = TaskConfig(name="t", kind="generate", data="x", decoding=table)
    drawn = {"temperature": CHAT.temperature} if name == "kind" else {}  # several answers, which must differ
    assert EvaluateConfig().answering(task) == replace(GREEDY, **drawn | {name: value})


def test_the_defaults_of_the_two_commands_are_what_is_shown() -> None:
    for command, defaults in ((generate, TEXT), (chat, CHAT)):
        shown = {name: p.default for name, p in inspect.signature(command).parameters.items()}
        assert all(shown[o.name] == getattr(defaults, o.name) or isinstance(shown[o.name], list) for o in OPTIONS)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--top-p=0", "top_p = 0.0 must be above 0"),
        ("--top-k=-1", "top_k = -1 must be at least 0"),
        ("--temperature=nan", "temperature = nan must be a number"),
        ("--temperature=inf", "temperature = inf must be a number"),
        ("--order=up", "order = 'up' is not one of"),
        ("--seed=1.5", "--seed"),
    ],
)
def test_an_option_out_of_its_range_ends_with_code_2(given: str, said: str) -> None:
    result = CliRunner().invoke(app, ["generate", "m", "x", given])
    assert result.exit_code == 2 and said in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_the_range_that_the_help_shows_is_what_is_accepted(option: Any, generator: FakeGenerator) -> None:
    """Each bound and, where it is exclusive, the bound itself."""
    help_ = " ".join(CliRunner().invoke(app, ["generate", "--help"], env={"COLUMNS": "400"}).output.split())
    flag = FLAGS.get(option.name, f"--{option.name.replace('_', '-')}")
    assert f"({allowed(option)})" in help_ or not allowed(option)
    for kind, step in (("ge", -1), ("gt", 0), ("le", 1)):
        if kind in option.metadata:
            bound = option.metadata[kind]
            refused = CliRunner().invoke(app, ["generate", "m", "x", f"{flag}={bound + step}"], env={"COLUMNS": "400"})
            assert refused.exit_code == 2 and f"must be {allowed(option)}" in " ".join(refused.output.split())
            if kind != "gt":
                assert CliRunner().invoke(app, ["generate", "m", "x", f"{flag}={bound}"]).exit_code == 0


def test_any_integer_is_a_seed(generator: FakeGenerator) -> None:
    for seed in (2**63, -5, 10**30):
        assert CliRunner().invoke(app, ["generate", "m", "x", f"--seed={seed}"]).exit_code == 0
        assert read_recipe("demo", [f"seed={seed}"]).seed == seed
    assert [asked.seed for asked in generator.asked] == [2**63, -5, 10**30]


NEW = """
from dataclasses import dataclass
from model.generate import decoding as d
from model.generate.option import option

@dataclass(frozen=True, kw_only=True)
class Decoding(d.Decoding):
    typical: float = option(1.0, "Keep what is typical.", gt=0.0, le=1.0)

base, d.Decoding = d.Decoding, Decoding
for name in ("TEXT", "CHAT", "GREEDY"):
    old = getattr(d, name)
    setattr(d, name, Decoding(**{f.name: getattr(old, f.name) for f in d.OPTIONS}))
d.OPTIONS = (*d.OPTIONS, Decoding.__dataclass_fields__["typical"])
d.TYPES["typical"] = float

import inspect
from cluster.evaluate.config import EvaluateConfig
from cluster.release.package import signature
from flows.cli.chat import chat
from flows.cli.generate import generate
for command in (generate, chat):
    assert "typical" in inspect.signature(command).parameters
assert "typical" in [p.name for p in signature().params]
task = {"name": "t", "kind": "generate", "data": "x", "decoding": {"typical": 0.25}}
config = EvaluateConfig.model_validate({"decoding": {"typical": 0.5}, "tasks": [task]})
assert config.sampling.typical == 0.5 and config.answering(config.tasks[0]).typical == 0.25
assert d.TEXT.read({"typical": "0.75"}).typical == 0.75
print("reachable")
"""


def test_a_field_that_is_added_is_reachable_the_same_day() -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", NEW], capture_output=True, text=True, env=env, encoding="utf-8")
    assert done.stdout == "reachable\n", done.stderr
