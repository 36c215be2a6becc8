"""`model.preset` in recipes: what it stands for, what wins over it, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.recipe_errors import RecipeError
from flows.recipe_preset import write_out
from flows.recipe_read import read_recipe
from flows.recipe_toml import read_layers
from model.config import ModelConfig
from model.presets import preset

HEAD = 'name = "x"\n[[sources]]\nname = "web"\npath = "web.jsonl"\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def model(*overrides: str, base: str | None = None, top: str | None = None) -> ModelConfig:
    Path("base.toml").write_text(HEAD + (f"[model]\n{base}\n" if base else ""), encoding="utf-8")
    Path("top.toml").write_text('extends = "base.toml"\n' + (f"[model]\n{top}\n" if top else ""), encoding="utf-8")
    return read_recipe("top.toml", overrides).model


def test_a_preset_stands_for_its_sizes() -> None:
    assert model(top='preset = "10M"') == ModelConfig(**preset("10M"))
    assert model("model.preset=mini-gpt") == ModelConfig(**preset("mini-gpt"))


def test_keys_beside_a_preset_and_above_it_win() -> None:
    assert model(top='n_layers = 3\npreset = "10M"') == ModelConfig(**(preset("10M") | {"n_layers": 3}))
    assert model(base='preset = "10M"', top="n_layers = 3").n_layers == 3
    assert model("model.n_layers=2", "model.preset=10M", top="n_layers = 3").n_layers == 2


def test_keys_below_a_preset_give_way_where_it_says_something() -> None:
    below = "d_model = 128\nn_layers = 3\nn_heads = 2\nd_ff = 99\nqk_norm = true"
    assert model(base=below, top='preset = "10M"') == ModelConfig(**preset("10M"), qk_norm=True)
    assert model("model.preset=10M", top=below) == ModelConfig(**preset("10M"), qk_norm=True)
    assert not model("model.preset=mini-gpt", top=below).qk_norm


def test_the_last_preset_is_the_one_that_counts() -> None:
    assert model("model.preset=3M", base='preset = "1M"', top='preset = "10M"') == ModelConfig(**preset("3M"))


def test_a_wrong_preset_is_told_with_its_place_and_the_nearest_name() -> None:
    with pytest.raises(RecipeError) as caught:
        model(top='preset = "mini-gtp"')
    text = str(caught.value)
    assert "model.preset  (top.toml, line 3)" in text and "Did you mean mini-gpt?" in text and "125M" in text
    with pytest.raises(RecipeError, match="a size in quotes"):
        model(top="preset = 10")


def test_what_a_preset_set_is_told_where_the_preset_was_written() -> None:
    with pytest.raises(RecipeError) as caught:
        model(top='\npreset = "10M"\nn_heads = 7')
    assert "d_model = 320 is not a multiple of n_heads = 7" in str(caught.value)
    assert "top.toml, line 4" in str(caught.value)


def test_each_entry_of_a_list_that_a_preset_set_is_told_there_too() -> None:
    Path("base.toml").write_text(HEAD + '[model]\npattern = ["gated", "gated"]\nd_ff = 99\n', encoding="utf-8")
    layers = read_layers("base.toml", ["model.preset=mini-gpt"])
    assert layers.origin(("model", "pattern", 0)).source == "base.toml"
    write_out(layers)
    for loc in (("model", "pattern"), ("model", "pattern", 0), ("model", "pattern", 1), ("model", "d_ff")):
        assert str(layers.origin(loc)) == "--set model.preset=mini-gpt"
