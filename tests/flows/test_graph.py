"""A recipe as a graph of steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows import graph as line
from flows.graph import graph, register, until
from flows.recipe_read import read_recipe

RECIPE = """
name = "x"
seed = 5
[[sources]]
name = "web"
path = "web.jsonl"
weight = 3
[instruct]
data = ["chat.jsonl"]
[rlhf]
tasks = ["tasks.jsonl"]
seed = 9
[release]
"""


@pytest.fixture
def steps(tmp_path: Path) -> Any:
    def make(*overrides: str) -> Any:
        path = tmp_path / "r.toml"
        path.write_text(RECIPE, encoding="utf-8")
        return graph(read_recipe(str(path), overrides))

    return make


def test_the_line_has_its_stages_in_order_and_each_reads_earlier_ones(steps: Any) -> None:
    line = steps()
    assert [s.name for s in line] == [
        "corpus", "filter", "tokenizer", "pack", "pretrain", "evaluate-base", "instruct", "rlhf", "evaluate", "release",
    ]  # fmt: skip
    for index, step in enumerate(line):
        assert all(source in line[:index] for source in step.inputs.values())


def test_the_model_that_is_released_is_the_last_that_was_made(steps: Any) -> None:
    for overrides, model, evaluation in (
        ((), "rlhf", "evaluate"),
        (("rlhf=false",), "instruct", "evaluate"),
        (("rlhf=false", "instruct=false"), "pretrain", "evaluate-base"),
    ):
        release = steps(*overrides)[-1]
        assert release.inputs["model"].name == model
        assert release.inputs["evaluation"].name == evaluation
        assert release.inputs["base_evaluation"].name == "evaluate-base"
        assert release.inputs["evaluation"].inputs["model"] is release.inputs["model"]


def test_the_recipes_seed_reaches_the_trainings_that_have_none_of_their_own(steps: Any) -> None:
    by_name = {s.name: s.config for s in steps()}
    assert (by_name["pretrain"].seed, by_name["instruct"].seed, by_name["rlhf"].seed) == (5, 5, 9)


def test_the_release_has_the_recipes_name_and_the_training_the_sources_weights(steps: Any) -> None:
    by_name = {s.name: s.config for s in steps()}
    assert by_name["release"].name == "x" and by_name["pretrain"].weights == {"web": 3.0}


def test_until_keeps_a_stage_and_what_it_needs(steps: Any) -> None:
    assert [s.name for s in until(steps(), "tokenizer")] == ["corpus", "filter", "tokenizer"]
    assert [s.name for s in until(steps(), "instruct")][-2:] == ["pretrain", "instruct"]
    assert len(until(steps(), None)) == 10


def test_until_an_unknown_stage_names_the_nearest(steps: Any) -> None:
    with pytest.raises(ValueError, match="Did you mean pretrain"):
        until(steps(), "pretrian")


def test_a_stage_that_is_added_stands_right_after_the_one_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [place.name for place in line.LINE]
    monkeypatch.setattr(line, "LINE", [*line.LINE])
    register(replace(line.LINE[0], name="new"), after="pack")
    at = before.index("pack") + 1
    assert [place.name for place in line.LINE] == [*before[:at], "new", *before[at:]]
