"""A filter is one file and one registration, and is then known to recipes, stage and fingerprints."""

import json

import pyarrow.parquet as pq
import pytest

from cluster.data.filter import FilterConfig
from cluster.data.filters import registry
from cluster.data.filters.contract import Filter, Thresholds, Verdict
from cluster.identity import identity
from flows.recipe_errors import RecipeError
from flows.recipe_read import read_recipe
from tests.cluster.data.data_pipeline import ids, run_filter
from tests.throw_away.shouting import Shouting


@pytest.fixture
def shouting():
    registry.register(Shouting)
    yield Shouting
    del registry.FILTERS["shouting"]
    registry._declare()


def test_a_filter_added_is_in_the_recipe_with_its_thresholds(shouting):
    recipe = read_recipe("demo", ['filter.rules=["shouting"]', "filter.thresholds.shouting.max_capitals=0.5"])
    assert recipe.filter.rules == ("shouting",)
    assert identity(recipe.filter)["thresholds"] == {"shouting": {"max_capitals": 0.5}}
    with pytest.raises(RecipeError, match="Did you mean max_capitals"):
        read_recipe("demo", ["filter.thresholds.shouting.max_capitls=0.5"])
    with pytest.raises(RecipeError, match="Did you mean shouting"):
        read_recipe("demo", ['filter.rules=["shoutin"]'])
    with pytest.raises(RecipeError, match="must be a number"):
        read_recipe("demo", ["filter.thresholds.shouting.max_capitals=[]"])


def test_a_filter_that_is_not_registered_is_not_in_the_recipe():
    with pytest.raises(RecipeError, match="one of gopher, gopher_quality, gopher_repetition, fineweb, c4, code"):
        read_recipe("demo", ['filter.rules=["shouting"]'])
    with pytest.raises(RecipeError, match="no such key in"):
        read_recipe("demo", ["filter.thresholds.shouting.max_capitals=0.5"])


def test_a_filter_added_leaves_the_identity_of_recipes_without_it(shouting):
    assert identity(FilterConfig()) == {}
    config = FilterConfig.model_validate({"thresholds": {"shouting": {"max_capitals": 0.3}, "code": {"min_lines": 2}}})
    assert identity(config) == {"thresholds": {"code": {"min_lines": 2}}}
    assert FilterConfig.model_validate(config.model_dump()) == config


def test_a_filter_added_works_in_the_stage_and_its_reasons_are_kept(ray_local, tmp_path, shouting):
    texts = ["a quiet text", "A LOUD TEXT", "Half LOUD"]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    sources = [{"name": "x", "path": str(tmp_path / "x.jsonl")}]
    made = run_filter(tmp_path / "store", sources, rules=["shouting"], thresholds={"shouting": {"max_capitals": 0.6}})
    removed = pq.read_table(made.path() / "removed.parquet").to_pylist()
    assert [(row["id"], row["reason"], row["detail"]) for row in removed] == [
        ("x/x.jsonl:2", "shouting.max_capitals", "0.8182 > 0.6")
    ]
    assert ids(made) == ["x/x.jsonl:1", "x/x.jsonl:3"]
    other = run_filter(tmp_path / "store", sources, rules=["shouting"])
    assert other.fingerprint != made.fingerprint and ids(other) == ["x/x.jsonl:1"]


def test_two_filters_of_one_name_are_refused(shouting):
    with pytest.raises(ValueError, match="a filter 'shouting' already"):
        registry.register(Shouting)

    class Gopher(Filter[Thresholds]):
        name, config = "gopher", Thresholds

    with pytest.raises(ValueError, match="already"):
        registry.register(Gopher)


def test_a_filter_that_judges_fewer_texts_than_it_was_given_is_refused():
    class Forgetful(Filter[Thresholds]):
        name, config = "forgetful", Thresholds

        def judge(self, texts):
            return [Verdict(text) for text in texts[1:]]

    with pytest.raises(ValueError, match="zip"):
        registry.judge(["one", "two"], [Forgetful(Thresholds())])
