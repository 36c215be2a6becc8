"""How a family's config.json is our ModelConfig: a tuple of declarations, each read in both directions.

    Key("hidden_size", "d_model", 4096)      one of their keys is one of our fields; 4096 where the key is missing
    Only("hidden_act", "silu")               the key may have no other value, since we have no part for it
    Always(norm="rmsnorm")                   what our config always is in this family

A missing key means what `transformers` takes then, so the defaults are those of its config classes. Keys that its model
never reads change nothing there, nor here.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from model.config import ModelConfig
from model.errors import UserError

Theirs = dict[str, Any]  # config.json
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
Ours = dict[str, Any]  # fields of ModelConfig, those of its parts as "moe.top_k"


class Unsupported(UserError):
    """A model that can't be expressed here: names the key, its value and what is supported."""

    @classmethod
    def key(cls, key: str, value: object, supported: str) -> "Unsupported":
        return cls(f"config.json says {key} = {value!r}, which can't be expressed here: {supported}.")


class Declaration(Protocol):
    def read(self, theirs: Theirs) -> Ours: ...
    def write(self, config: ModelConfig) -> Theirs: ...


def value(config: ModelConfig, field: str) -> Any:
    """A field's value, with what follows from other fields filled in."""
    known = {
        "n_kv_heads": config.kv_heads,
        "d_head": config.head_dim,
        "d_ff": config.ff_width,
        "moe.d_ff": config.expert_width,
        "qkv_bias": config.has_qkv_bias,
        "out_bias": config.has_out_bias,
        "ff_bias": config.has_ff_bias,
    }
    if field in known:
        return known[field]
    found: Any = config
    for name in field.split("."):
        found = getattr(found, name)
    return found


@dataclass(frozen=True)
class Key:
    """One of their keys is one of our fields; null means the default. `older`: its name before, also written."""

    theirs: str
    ours: str
    default: Any
    older: str = ""

    def read(self, theirs: Theirs) -> Ours:
        given = theirs.get(self.theirs, theirs.get(self.older))
        if given is None:
            return {} if self.default is None else {self.ours: self.default}
        kind = int if self.default is None else type(self.default)
        fits = isinstance(given, int | float if kind is float else kind)
        if not fits or (isinstance(given, bool) and kind is not bool):
            raise Unsupported.key(self.theirs, given, f"it must be {KINDS[kind]}")
        return {self.ours: given}

    def write(self, config: ModelConfig) -> Theirs:
        return dict.fromkeys(filter(None, (self.theirs, self.older)), value(config, self.ours))


@dataclass(frozen=True)
class Nullable:
    """As Key, where null has a meaning of its own that a missing key hasn't."""

    theirs: str
    ours: str
    default: Any

    def read(self, theirs: Theirs) -> Ours:
        return {self.ours: theirs.get(self.theirs, self.default)}

    def write(self, config: ModelConfig) -> Theirs:
        return {self.theirs: value(config, self.ours)}


@dataclass(frozen=True)
class Only:
    """A key that must have one of the values `allowed`; the first of them is written, `default` where it is missing."""

    theirs: str
    allowed: tuple[Any, ...]
    default: Any
    hint: str = ""

    def read(self, theirs: Theirs) -> Ours:
        given = theirs.get(self.theirs, self.default)
        if given not in self.allowed:
            supported = " or ".join(repr(a) for a in self.allowed)
            raise Unsupported.key(self.theirs, given, f"supported is {supported}{self.hint and ' ' + self.hint}")
        return {}

    def write(self, config: ModelConfig) -> Theirs:
        return {self.theirs: self.allowed[0]}


class Always:
    """Fields of ours that are the same in every model of a family."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def read(self, theirs: Theirs) -> Ours:
        return self.fields

    def write(self, config: ModelConfig) -> Theirs:
        return {}


@dataclass(frozen=True)
class ScaledEmbedding:
    """Embeddings that grow by the square root of the model's width on their way in."""

    hidden_size: str = "hidden_size"

    def read(self, theirs: Theirs) -> Ours:
        return {"embedding_scale": theirs[self.hidden_size] ** 0.5} if self.hidden_size in theirs else {}

    def write(self, config: ModelConfig) -> Theirs:
        return {}


@dataclass(frozen=True)
class QueryScale:
    """Scores are divided by the square root of a key's value, which needn't be the head's size."""

    theirs: str
    default: float

    def read(self, theirs: Theirs) -> Ours:
        return {"attention_scale": theirs.get(self.theirs, self.default) ** -0.5}

    def write(self, config: ModelConfig) -> Theirs:
        if config.attention_scale is None:
            return {self.theirs: config.head_dim}
        scalar = config.attention_scale**-2
        return {self.theirs: round(scalar) if abs(scalar - round(scalar)) < 1e-9 * scalar else scalar}
