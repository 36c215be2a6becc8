"""Recipes: what layers on what, and what a wrong one says."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from flows.recipe_errors import RecipeError, show_value
from flows.recipe_toml import SHIPPED, find_recipe, parse_value, read_layers
from flows.recipe_validate import sentence, unknown_key, validate


@dataclass(frozen=True)
class Model:
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    d_model: int = 4
    n_heads: int = 2
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    pattern: tuple[str, ...] = ("attention",)

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model = {self.d_model} is not a multiple of n_heads = {self.n_heads}")


@dataclass(frozen=True)
class Train:
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    lr: float = 1e-3
    steps: int = 1000


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Strict):
    name: str
    path: str
    weight: float = Field(1.0, gt=0)


class Tuning(Strict):
    train: Train = Train(steps=200, lr=5e-4)


class Schema(Strict):
    name: str
    sources: tuple[Source, ...] = Field(min_length=1)
    model: Model = Model()
    train: Train = Train()
    tuning: Tuning | None = None


GOOD = """
name = "x"
[[sources]]
name = "web"
path = "web.jsonl"
[[sources]]
name = "my.code"
path = "code.txt"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    return name


def read(name: str, *overrides: str) -> Schema:
    return validate(Schema, read_layers(name, overrides))


def wrong(name: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read(name, *overrides)
    return str(caught.value)


# --- extends ---------------------------------------------------------------------------------------------------


def test_a_recipe_extends_a_chain_relative_to_each_file(folder: Path) -> None:
    write("low/base.toml", GOOD + "[train]\nlr = 1\nsteps = 1\n[model]\nd_model = 8\n")
    write("low/middle.toml", 'extends = "base.toml"\n[train]\nlr = 2\n')
    write("top.toml", 'extends = "low/middle.toml"\n[model]\nn_heads = 4\n')
    recipe = read("top.toml")
    assert (recipe.train.lr, recipe.train.steps, recipe.model.d_model, recipe.model.n_heads) == (2, 1, 8, 4)


def test_a_list_of_tables_is_replaced_not_merged(folder: Path) -> None:
    write("base.toml", GOOD)
    write("top.toml", 'extends = "base.toml"\n[[sources]]\nname = "only"\npath = "p"\n')
    assert [s.name for s in read("top.toml").sources] == ["only"]


def test_a_circle_of_extends_is_refused_and_shown(folder: Path) -> None:
    write("a.toml", 'extends = "b.toml"')
    write("b.toml", 'extends = "a.toml"')
    text = wrong("a.toml")
    assert "circle" in text and "a.toml -> b.toml -> a.toml" in text


def test_a_base_that_is_missing_names_the_nearest_file(folder: Path) -> None:
    write("base.toml", GOOD)
    write("top.toml", 'extends = "bsae.toml"')
    assert "Did you mean base.toml?" in wrong("top.toml")


def test_a_recipe_that_ships_can_be_named_extended_and_given_by_path(folder: Path) -> None:
    assert find_recipe("demo") == SHIPPED / "demo.toml" == find_recipe("demo.toml")
    write("mine.toml", 'extends = "demo"\nname = "mine"')
    layers = read_layers("mine.toml")
    assert layers.values["name"] == "mine" and layers.values["sources"]


def test_a_missing_recipe_lists_those_that_ship_and_the_nearest(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"no such recipe. Did you mean demo\? Recipes that ship: .*demo"):
        read_layers("dmeo")


# --- --set -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("7", 7),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('"7"', "7"),
        ("cosine", "cosine"),
        ("s3://b/p", "s3://b/p"),
        ("a=b", "a=b"),
        ("", ""),
        ("2020-01-01", "2020-01-01"),
        ("1\nother = 2", "1\nother = 2"),
    ],
)
def test_a_value_is_toml_else_a_text(text: str, value: Any) -> None:
    assert parse_value(text) == value and type(parse_value(text)) is type(value)


@hypothesis_given(st.text())
def test_any_text_is_some_value(text: str) -> None:
    parse_value(text)


def test_set_reaches_tables_list_entries_by_number_and_by_name(folder: Path) -> None:
    write("r.toml", GOOD)
    recipe = read("r.toml", "train.lr=3e-4", "sources.0.weight=2", "sources.my.code.weight=3", "tuning.train.lr=1")
    assert recipe.train.lr == 3e-4
    assert [s.weight for s in recipe.sources] == [2, 3]
    assert recipe.tuning is not None and recipe.tuning.train.lr == 1


def test_a_later_set_wins_and_a_number_may_be_meant_as_a_text(folder: Path) -> None:
    write("r.toml", GOOD)
    recipe = read("r.toml", "train.steps=1", "train.steps=2", "name=5")
    assert recipe.train.steps == 2 and recipe.name == "5"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lr", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("train..lr=3", "KEY=VALUE"),
        ("sources.wbe.weight=2", "Did you mean sources.web?"),
        ("sources.9.weight=2", "no entry 9"),
        ("name.x=2", "name is a text, not a table"),
    ],
)
def test_a_wrong_set_says_so(folder: Path, override: str, words: str) -> None:
    write("r.toml", GOOD)
    text = wrong("r.toml", override)
    assert words in text and f"--set {override}" in text


# --- errors ----------------------------------------------------------------------------------------------------


def test_all_problems_are_told_at_once_each_at_the_file_and_line_it_came_from(folder: Path) -> None:
    write("base.toml", GOOD + "weigth = 2\n[train]\nsteps = 3.5\n")
    write("top.toml", 'extends = "base.toml"\n[model]\nnorm = "rms_norm"\n\n[train]\nn_heads = 3\n')
    text = wrong("top.toml", "train.lr=fast")
    assert "4 problems" not in text and "5 problems" in text
    entries = {block.split("  (")[0]: block for block in text.split("\n\n")}
    assert "(base.toml, line 9)" in entries["sources.my.code.weigth"]
    assert "Did you mean weight?" in entries["sources.my.code.weigth"]
    assert "(base.toml, line 11)" in entries["train.steps"] and "whole number" in entries["train.steps"]
    assert "(top.toml, line 3)" in entries["model.norm"]
    assert "one of rmsnorm, layernorm. Did you mean rmsnorm?" in entries["model.norm"]
    assert "(top.toml, line 6)" in entries["train.n_heads"]
    assert "n_heads belongs to [model]" in entries["train.n_heads"]
    assert "(--set train.lr=fast)" in entries["train.lr"]
    assert '"fast" (a text)' in entries["train.lr"] and "must be a number" in entries["train.lr"]


def test_an_override_takes_the_blame_from_the_file_it_overrides(folder: Path) -> None:
    write("r.toml", GOOD + '[train]\nlr = "slow"\n')
    assert "(r.toml, line 10)" in wrong("r.toml")
    assert "(--set train.lr=fast)" in wrong("r.toml", "train.lr=fast")
    assert read("r.toml", "train.lr=1").train.lr == 1


def test_a_missing_key_is_told_at_its_table(folder: Path) -> None:
    write("r.toml", 'name = "x"\n[[sources]]\nname = "web"\n')
    text = wrong("r.toml")
    assert "sources.web.path  (r.toml, line 2)" in text and "required" in text


def test_a_check_over_several_fields_points_at_the_line_of_one(folder: Path) -> None:
    write("r.toml", GOOD + "[model]\n\nn_heads = 3\n")
    text = wrong("r.toml")
    assert "d_model = 4 is not a multiple of n_heads = 3" in text and "(r.toml, line 11)" in text


def test_a_value_that_is_long_or_a_table_is_shown_shortened() -> None:
    assert show_value({"a": 1, "b": ["x", True]}) == 'a table {a = 1, b = ["x", true]}'
    assert show_value("x" * 118) == f'"{"x" * 118}"'
    shown = show_value("x" * 119)
    assert len(shown) == 120 and shown == f'"{"x" * 116}...'


class Placed(Strict):
    place: str | tuple[Source, ...] | None = None


def test_keys_of_a_table_that_may_be_a_text_instead_are_known() -> None:
    assert "Did you mean path?" in unknown_key(Placed, ("place", 0, "paht"), "place")


def test_what_has_no_words_of_its_own_is_told_in_pydantic_s() -> None:
    error = {"type": "string_pattern_mismatch", "msg": "String should match pattern 'a+'"}
    assert sentence(error) == "string should match pattern 'a+'."


def test_a_wrong_table_and_an_empty_list_are_told_in_words(folder: Path) -> None:
    write("r.toml", 'name = "x"\nsources = []\ntrain = 3\n')
    text = wrong("r.toml")
    assert "must be a table" in text and "at least 1" in text


def test_broken_toml_names_the_line_and_shows_it(folder: Path) -> None:
    text = wrong(write("r.toml", 'name = "x"\n[train\nlr = 3\n'))
    assert "r.toml" in text and "line 2" in text and "[train" in text


def test_a_recipe_that_is_no_text_is_refused(folder: Path) -> None:
    Path("r.toml").write_bytes(b"name = '\xff'")
    assert "not UTF-8" in wrong("r.toml")


def test_a_partly_given_table_keeps_the_defaults_of_its_place(folder: Path) -> None:
    write("r.toml", GOOD + "[tuning.train]\nlr = 1.0\n")
    tuning = read("r.toml").tuning
    assert tuning is not None and tuning.train == Train(steps=200, lr=1.0)


# --- the recipe itself -------------------------------------------------------------------------------------------

REAL = GOOD.replace('"my.code"', '"code"')


def real(text: str, *overrides: str) -> Any:
    from flows.recipe_read import read_recipe

    return read_recipe(write("r.toml", text), overrides)


def test_a_stage_that_is_false_is_left_out(folder: Path) -> None:
    text = REAL + '[instruct]\ndata = ["chat.jsonl"]\n[release]\n'
    assert real(text).instruct is not None
    recipe = real(text, "instruct=false", "release=false")
    assert recipe.instruct is None and recipe.release is None


def test_store_is_a_text_or_a_table(folder: Path) -> None:
    assert real('store = "s3://b/p"' + REAL).store.url == "s3://b/p"
    assert real(REAL + '[store]\nurl = "x"\n').store.url == "x"
    assert real(REAL).store.url == "store"


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("train.seq_len=4096", "train.seq_len", "model.max_seq_len = 2048"),
        ("sources.1.name=web", "sources.web.name", "another source has this name"),
        ("model.vocab_size=77", "model.vocab_size", "the tokenizer sets it"),
        ("tokenizer.weights.wbe=2", "tokenizer.weights.wbe", "Did you mean web?"),
        ('rlhf.tasks=["t.jsonl"]', "rlhf", "needs [instruct] before it"),
        ("model.n_heads=7", "model", "not a multiple"),
        ("name=my model", "name", "letters, digits, dashes"),
        ("release.name=a@b", "release.name", "not '@'"),
        ("release.name=a%20b", "release.name", "not '%'"),
        ("sources.0.weight=0", "sources.web.weight", "greater than 0"),
        ("train.schedule=cosin", "train.schedule", "cosine"),
        ("train.objective=masked_diffusion", "train.objective", "it needs model.causal = false"),
    ],
)
def test_what_no_table_sees_alone_is_checked(folder: Path, override: str, key: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        real(REAL, override)
    assert f"{key}  (--set {override})" in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["train.objective=next_token"], "train.objective", 'train it with objective = "masked_diffusion"'),
        (["model.causal=true"], "train.objective", "it needs model.causal = false"),
        (['model.pattern=["mamba2"]'], "model", "mamba2, which only goes forward"),
        (["model.position=none"], "model.position", "nothing else tells the order"),
        (['instruct.data=["c.jsonl"]'], "instruct.train.objective", 'train it with objective = "masked_diffusion"'),
        (['instruct.data=["c"]', 'rlhf.tasks=["t"]'], "rlhf", "leave [rlhf] out, or set model.causal = true"),
        (["model.vocab_size=4096"], "model.vocab_size", "the tokenizer sets it"),
    ],
)
def test_a_diffusion_recipe_that_can_t_work_says_why(folder: Path, overrides: list[str], key: str, words: str) -> None:
    text = REAL + '[model]\ncausal = false\n[train]\nobjective = "masked_diffusion"\n'
    assert real(text).train.objective == "masked_diffusion"
    with pytest.raises(RecipeError) as caught:
        real(text, *overrides)
    assert f"{key}  (" in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_that_ships_is_valid_and_makes_a_graph(path: Path) -> None:
    from flows.graph import graph
    from flows.recipe_read import read_recipe

    names = [s.name for s in graph(read_recipe(str(path)))]
    assert names[:5] == ["corpus", "filter", "tokenizer", "pack", "pretrain"] and len(set(names)) == len(names)


def test_a_filter_that_names_no_source_is_told_before_anything_starts() -> None:
    from flows.recipe_read import read_recipe

    with pytest.raises(RecipeError, match=r"(?s)filter.*coed.*Did you mean 'code'"):
        read_recipe("demo", ['filter.rules.coed=["code"]'])


SOURCE = '[[sources]]\nname = "web"\npath = "web.jsonl"\n'


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ('name = "x"\n[[sources]]\nname = 3\npath = "p"\n', "sources.0.name", "a text in quotes"),
        ('name = "x"\n[[sources]]\nname = "t"\npath = "p"\nweight = -1\n', "sources.t.weight", "greater than 0"),
        ('name = "x"\n[[sources]]\nname = "t"\npaht = "p"\n', "sources.t.paht", "Did you mean path?"),
        ('nmae = "x"\n' + SOURCE, "nmae", "Did you mean name?"),
        ('name = "x"\nsources = []\n', "sources", "at least 1 entry"),
        ('name = "x"\nstore = 3\n' + SOURCE, "store", "a text in quotes"),
        ('name = "x"\nstore = ""\n' + SOURCE, "store", "at least 1 character"),
        (
            'name = "x"\n' + SOURCE + '[cluster]\nworkers = "many"\n',
            "cluster.workers",
            "a whole number, or one of auto",
        ),
        ('name = "x"\n' + SOURCE + "[cluster]\nworkers = -1\n", "cluster.workers", "at least 0, or one of auto"),
        ('name = "x"\n' + SOURCE + '[cluster]\nuse_gpu = "x"\n', "cluster.use_gpu", "true or false, or one of auto"),
        ('name = "x"\n' + SOURCE + '[filter]\nrules = ["gophr"]\n', "filter.rules.0", "Did you mean gopher?"),
        (
            'name = "x"\n' + SOURCE + '[filter]\nrules = {web = ["gophr"]}\n',
            "filter.rules.web.0",
            "Did you mean gopher?",
        ),
        ('name = "x"\n' + SOURCE + "[filter]\nrules = 3\n", "filter.rules", "a list"),
        ('name = "x"\n' + SOURCE + "[extend]\nmax_seq_length = 4096\n", "extend.max_seq_length", "max_seq_len?"),
    ],
)
def test_one_thing_that_is_wrong_is_one_problem(folder: Path, text: str, key: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        real(text)
    (problem,) = caught.value.problems
    assert problem.key == key and words in problem.message


def test_things_that_are_wrong_side_by_side_are_all_shown(folder: Path) -> None:
    text = 'name = "x"\nseed = "a"\n[[sources]]\nname = "t"\n[[sources]]\npath = 3\n[cluster]\nworkers = "x"\n'
    with pytest.raises(RecipeError) as caught:
        real(text)
    assert [p.key for p in caught.value.problems] == [
        "seed", "sources.t.path", "sources.1.name", "sources.1.path", "cluster.workers",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "key", "words"),
    [
        ("{wbe=2,web=1,code=0}", "extend.weights.wbe", "Did you mean web?"),
        ("{web=2}", "extend.weights", "0 to leave it out; there is none for code."),
    ],
)
def test_the_weights_of_a_longer_context_are_of_the_sources(folder: Path, weights: str, key: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        real(REAL + "[extend]\nmax_seq_len = 4096\n", f"extend.weights={weights}")
    assert f"{key}  (--set extend.weights={weights})" in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize(
    ("table", "metric", "words"),
    [
        ("metrics", "bpb/cdoe", "did you mean bpb/code?"),
        ("require", "bbp", "did you mean bpb?"),
        ("metrics", "sums/acuracy", "did you mean sums/accuracy?"),
        ("metrics", "reward", "it measures bpb, unigram_bpb, gzip_bpb, bpb/web"),
        ("metrics", "bpb_bound_error/code", "a metric of the evaluation"),  # only of a diffusion model
    ],
)
def test_a_gate_asks_for_what_the_evaluation_measures(folder: Path, table: str, metric: str, words: str) -> None:
    task = '[[evaluate.tasks]]\nname = "sums"\nkind = "generate"\ndata = "generated://arithmetic?n=9"\n'
    bound = 'mode = "min"' if table == "metrics" else "max = 3.0"
    for name in ("bpb/code", "sums/accuracy", metric):
        text = REAL + task + f'[[release.{table}]]\nmetric = "{name}"\n{bound}\n'
        if name != metric:
            real(text)
            continue
        with pytest.raises(RecipeError) as caught:
            real(text)
        (problem,) = caught.value.problems
        assert problem.key == f"release.{table}.0.metric" and words in problem.message


def _tables(kind: Any, found: set[type]) -> set[type]:
    """Every class that a value of this type can be a table of."""
    for inner in typing.get_args(kind):
        _tables(inner, found)
    if isinstance(kind, type) and kind not in found and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind)):
        found.add(kind)
        model = issubclass(kind, BaseModel)
        fields = [f.annotation for f in kind.model_fields.values()] if model else typing.get_type_hints(kind).values()
        for inner in fields:
            _tables(inner, found)
    return found


def test_no_table_of_a_recipe_can_be_changed_once_it_was_read() -> None:
    from flows.graph import LINE
    from flows.recipe import Recipe

    tables = _tables(Recipe, set())
    for place in LINE:
        tables = _tables(place.load().config, tables)
    assert len(tables) > 25
    for table in tables:
        fixed = table.model_config.get("frozen") if issubclass(table, BaseModel) else table.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert fixed, table
