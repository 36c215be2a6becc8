"""A recipe: one TOML file that describes a run of the line, from its sources to a registered model.

A stage's table is that stage's own config class, so what a table allows is written once, beside the code
that reads it. `read_recipe` forbids what nobody reads and tells every problem at once, before anything
starts.

    name = "mine"            [[sources]] [filter] [tokenizer] [pack]      the data
    extends = "base.toml"    [model] [train]                              pretraining; [model] preset = "10M"
    seed = 7                 [extend]                                     a longer context; absent or false: left out
                             [instruct] [rlhf]                            alignment; absent or false: left out
    store = "s3://b/p"       [evaluate] [release] [cluster] [tracking]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from cluster.align.instruct import InstructConfig
from cluster.align.rlhf import RlhfConfig, policy_problem
from cluster.data.corpus import CorpusConfig
from cluster.data.filter import FilterConfig, check_sources
from cluster.data.pack import PackConfig
from cluster.data.readers.sources import Source
from cluster.data.tokenizer.tokenizer import TokenizerConfig
from cluster.errors import UserError, nearest
from cluster.evaluate.config import EvaluateConfig
from cluster.release.release import ReleaseConfig
from cluster.session import ClusterConfig
from cluster.tracking.tracker import TrackingConfig
from cluster.train.extend import ExtendConfig, extended
from cluster.train.pretrain import objective_problem
from flows.recipe_errors import Problem, RecipeError
from flows.recipe_preset import write_out
from flows.recipe_toml import Layers, read_layers
from flows.recipe_validate import validate
from model.config import ModelConfig
from model.train_config import TrainConfig


def by_default(table: Any) -> Any:
    """A table that is all defaults where the recipe doesn't have it."""
    return Field(default_factory=table)


class StoreConfig(BaseModel):
    """`store = "…"`, or a table `[store]` with the same as `url`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field("store", min_length=1, description="a folder, or s3://bucket/prefix")


class CorpusTable(CorpusConfig):
    """`[corpus]`: how sources are read; the sources themselves are `[[sources]]`."""

    sources: tuple[Source, ...] = ()


class Recipe(BaseModel):
    """What one run of the line is made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="letters, digits, dashes; names the run and, by default, the registered model")
    seed: int = Field(0, ge=0)
    store: StoreConfig = by_default(StoreConfig)
    sources: tuple[Source, ...] = Field(min_length=1)
    corpus: CorpusTable = by_default(CorpusTable)
    filter: FilterConfig = by_default(FilterConfig)
    tokenizer: TokenizerConfig = by_default(TokenizerConfig)
    pack: PackConfig = by_default(PackConfig)
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    extend: ExtendConfig | None = None
    instruct: InstructConfig | None = None
    rlhf: RlhfConfig | None = None
    evaluate: EvaluateConfig = by_default(EvaluateConfig)
    release: ReleaseConfig | None = None
    cluster: ClusterConfig = by_default(ClusterConfig)
    tracking: TrackingConfig = by_default(TrackingConfig)
    _layers: Layers | None = PrivateAttr(None)

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise UserError("letters, digits, dashes, dots and underscores, and it begins with a letter or digit.")
        return name

    @field_validator("store", mode="before")
    @classmethod
    def _store_url(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @field_validator("extend", "instruct", "rlhf", "release", mode="before")
    @classmethod
    def _left_out(cls, value: Any) -> Any:
        return None if value is False else value

    @property
    def text(self) -> dict[str, Any]:
        """The merged values as they were written, for the tracking record."""
        return self._layers.values if self._layers else self.model_dump(mode="json")

    @property
    def files(self) -> list[Path]:
        """The files that it was read from, bases first."""
        return self._layers.files if self._layers else []


def read_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe by path or by the name of one that ships, with `--set` overrides on top.

    Raises:
        RecipeError: every problem, with file and line, key, what was given and what is allowed.
    """
    layers = read_layers(name, overrides)
    write_out(layers)
    recipe = validate(Recipe, layers)
    problems = list(cross_checks(recipe, layers))
    if problems:
        raise RecipeError(layers.name, problems)
    recipe._layers = layers
    return recipe


def cross_checks(recipe: Recipe, layers: Layers) -> list[Problem]:
    """What no table can see alone."""
    found: list[Problem] = []

    def wrong(key: str, message: str, given: str | None = None) -> None:
        loc = tuple(int(p) if p.isdigit() else p for p in key.split("."))
        found.append(Problem(layers.key(loc), str(layers.origin(loc)), given, message))

    names = [s.name for s in recipe.sources]
    for index, name in enumerate(names):
        if name in names[:index]:
            wrong(f"sources.{index}.name", "another source has this name; each needs its own.", f'"{name}"')
    for name in recipe.tokenizer.weights:
        if name not in names:
            close = nearest(name, names)
            hint = f" Did you mean {close[0]}?" if close else ""
            wrong(f"tokenizer.weights.{name}", f"one of the sources: {', '.join(names)}.{hint}")
    try:
        check_sources(recipe.filter, names)
    except UserError as error:
        wrong("filter", str(error))
    final = ("model.max_seq_len", recipe.model.max_seq_len)
    lengths: dict[str, tuple[int, tuple[str, int]]] = {"train.seq_len": (recipe.train.seq_len, final)}
    if recipe.extend:
        final = ("extend.max_seq_len", recipe.extend.max_seq_len)
        lengths["extend.train.seq_len"] = (recipe.extend.train.seq_len, final)
        try:
            extended(recipe.model, recipe.extend)
        except UserError as error:
            wrong("extend", str(error))
    if recipe.evaluate.seq_len is not None:
        lengths["evaluate.seq_len"] = (recipe.evaluate.seq_len, final)
    if recipe.instruct:
        lengths["instruct.train.seq_len"] = (recipe.instruct.train.seq_len, final)
    if recipe.rlhf:
        lengths["rlhf.train.seq_len"] = (recipe.rlhf.train.seq_len, final)
    for key, (length, (where, longest)) in lengths.items():
        if length > longest:
            wrong(
                key,
                f"at most {where} = {longest}: lower {key} or raise {where}.",
                str(length),
            )
    if recipe.corpus.sources:
        wrong("corpus.sources", "sources are written as [[sources]], at the top level.")
    needed = replace(recipe.model, vocab_size=0).with_vocabulary(recipe.tokenizer.vocab_size).vocab_size
    if recipe.model.vocab_size not in (0, needed):
        wrong(
            "model.vocab_size",
            f"leave it out: the tokenizer sets it (tokenizer.vocab_size = {recipe.tokenizer.vocab_size}).",
            str(recipe.model.vocab_size),
        )
    trainings = {"train": recipe.train}
    trainings |= {"extend.train": recipe.extend.train} if recipe.extend else {}
    trainings |= {"instruct.train": recipe.instruct.train} if recipe.instruct else {}
    for key, train in trainings.items():
        problem = objective_problem(train, recipe.model)
        if problem:
            wrong(f"{key}.objective", problem, f'"{train.objective}"')
    if not recipe.model.causal and recipe.model.position == "none":
        wrong("model.position", 'with causal = false nothing else tells the order: "rope" or "learned".', '"none"')
    if recipe.rlhf:
        problem = policy_problem(recipe.model)
        if problem:
            wrong("rlhf", problem)
        if recipe.rlhf.train.objective != "next_token":
            wrong("rlhf.train.objective", "leave it out: [rlhf] method says what is optimised.")
    if recipe.rlhf is not None and recipe.instruct is None:
        wrong(
            "rlhf",
            "needs [instruct] before it: a model that never saw the chat format has nothing to reward.",
        )
    return found
