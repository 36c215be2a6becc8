"""A recipe: one TOML file that describes a run of the line, from its sources to a registered model.

A stage's table is that stage's own config class, so what a table allows is written once, beside the code that reads it.
`read_recipe` forbids what nobody reads and tells every problem at once, before anything starts.

    name = "mine"            [[sources]] [filter] [tokenizer] [pack]      the data
    extends = "base.toml"    [model] [train]                              pretraining; [model] preset = "10M"
    seed = 7                 [extend]                                     a longer context; absent or false: left out
    store = "s3://b/p"       [instruct] [rlhf]                            alignment; absent or false: left out
                             [quantize]                                   INT8 or INT4; absent or false: left out
    base = "models:/m/1"     [evaluate] [release] [cluster] [tracking]    base: in the place of a pretraining
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from cluster.align.config import RlhfConfig
from cluster.align.instruct import InstructConfig
from cluster.data.corpus import CorpusConfig
from cluster.data.filter import FilterConfig
from cluster.data.pack import PackConfig
from cluster.data.readers.sources import Source
from cluster.data.tokenizer.training import TokenizerConfig
from cluster.errors import UserError
from cluster.evaluate.config import EvaluateConfig
from cluster.quantize.config import QuantizeConfig
from cluster.registry.names import checked_name
from cluster.release.release import ReleaseConfig
from cluster.session import ClusterConfig
from cluster.tracking.tracker import TrackingConfig
from cluster.train.extend import ExtendConfig
from flows.recipe_toml import Layers
from model.config import ModelConfig
from model.train_config import TrainConfig

if TYPE_CHECKING:
    from cluster.interop.base import BaseConfig


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
    seed: int = 0
    store: StoreConfig = by_default(StoreConfig)
    base: str | None = Field(None, min_length=1, description="a model to begin with: cluster/interop/base.py")
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
    quantize: QuantizeConfig | None = None
    evaluate: EvaluateConfig = by_default(EvaluateConfig)
    release: ReleaseConfig | None = None
    cluster: ClusterConfig = by_default(ClusterConfig)
    tracking: TrackingConfig = by_default(TrackingConfig)
    _layers: Layers | None = PrivateAttr(None)
    _begins: BaseConfig | None = PrivateAttr(None)  # what `base` meant when the recipe was read; `model` is then its

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return checked_name(name)

    @field_validator("store", mode="before")
    @classmethod
    def _store_url(cls, value: Any) -> Any:
        if not isinstance(value, str | dict | StoreConfig):
            raise UserError("must be a text in quotes: a folder, or s3://bucket/prefix.")
        return {"url": value} if isinstance(value, str) else value

    @field_validator("base", "extend", "instruct", "rlhf", "quantize", "release", mode="before")
    @classmethod
    def _left_out(cls, value: Any) -> Any:
        return None if value is False else value

    @property
    def network(self) -> ModelConfig:
        """The model that the line begins with, its vocabulary included."""
        return self.model if self._begins else self.model.with_vocabulary(self.tokenizer.vocab_size)

    @property
    def training(self) -> TrainConfig:
        """How the line trains first."""
        tables = (self.extend, self.instruct, self.rlhf) if self.base else ()
        return next((table.train for table in tables if table), self.train)

    @property
    def text(self) -> dict[str, Any]:
        """The merged values as they were written, for the tracking record."""
        return self._layers.values if self._layers else self.model_dump(mode="json")

    @property
    def source(self) -> str:
        """The recipe as it was named."""
        return self._layers.name if self._layers else self.name

    @property
    def overrides(self) -> list[str]:
        """What --set has changed, as it was written."""
        return list(self._layers.overrides) if self._layers else []


class BasedRecipe(Recipe):
    """A recipe that begins with a trained model, which needs no text."""

    sources: tuple[Source, ...] = ()
