"""What a model is (`ModelConfig`) and how it is trained (`TrainConfig`): plain frozen dataclasses, without
torch.

Each architecture upgrade is one field whose default is the usual small Llama. Pydantic reads both as parts of
a recipe (`__pydantic_config__` forbids unknown keys); `__post_init__` refuses what can't work, in words for a
person. A field marked `HOW` changes how fast or where something runs, never its result, and stays out of
fingerprints.
"""

from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, Self, get_args

from model.mixers import MIXERS

FeedForward = Literal["swiglu", "geglu", "gelu", "relu2"]
Norm = Literal["rmsnorm", "layernorm"]
Position = Literal["rope", "learned", "none"]
Schedule = Literal["cosine", "wsd", "linear", "constant"]
Optimizer = Literal["adamw", "muon"]
Precision = Literal["auto", "fp32", "bf16"]
Checkpointing = Literal["none", "full"]

GATED = ("swiglu", "geglu")
HOW: dict[str, Any] = {"identity": False}


def _choose(name: str, given: object, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        near = get_close_matches(str(given), allowed, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} = {given!r} is not one of {', '.join(map(repr, allowed))}{hint}")


def _at_least(name: str, given: float | None, least: float) -> None:
    if given is not None and not given >= least:
        raise ValueError(f"{name} = {given} is too small: it must be at least {least}")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder. Sizes left as None follow from the others (see the properties)."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (pydantic's protocol; not a field)

    vocab_size: int = 0  # 0: taken from the tokenizer
    d_model: int = 256
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int | None = None  # None: n_heads (MHA); 1: MQA; between: GQA
    d_head: int | None = None  # None: d_model / n_heads
    d_ff: int | None = None  # None: ff_ratio * d_model, rounded up to ff_multiple_of
    ff_ratio: float | None = None  # None: 8/3 for gated feed-forwards, else 4, i.e. equal parameters
    ff_multiple_of: int = 32
    feed_forward: FeedForward = "swiglu"
    norm: Norm = "rmsnorm"
    norm_eps: float = 1e-5
    position: Position = "rope"
    rope_theta: float = 10_000.0
    max_seq_len: int = 2048  # rows of learned positions; the longest context to generate in
    tie_embeddings: bool = True
    qk_norm: bool = False  # RMSNorm over each head's queries and keys
    bias: bool = False  # in the linear layers, and in LayerNorm
    logit_softcap: float | None = None  # c * tanh(logits / c)
    init_std: float = 0.02
    pattern: tuple[str, ...] = ("attention",)  # mixers by name, repeated over depth

    def __post_init__(self) -> None:
        _choose("feed_forward", self.feed_forward, get_args(FeedForward))
        _choose("norm", self.norm, get_args(Norm))
        _choose("position", self.position, get_args(Position))
        if not isinstance(self.pattern, tuple):
            object.__setattr__(self, "pattern", tuple(self.pattern))
        if not self.pattern:
            raise ValueError("pattern is empty: name at least one mixer, e.g. ['attention']")
        for mixer in self.pattern:
            _choose("pattern", mixer, tuple(MIXERS))
        for name in (
            "d_model",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "d_head",
            "d_ff",
            "ff_multiple_of",
            "max_seq_len",
        ):
            _at_least(name, getattr(self, name), 1)
        _at_least("vocab_size", self.vocab_size, 0)
        for name in ("ff_ratio", "norm_eps", "rope_theta", "logit_softcap", "init_std"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} = {value} must be greater than 0")
        if self.d_head is None and self.d_model % self.n_heads:
            raise ValueError(
                f"d_model = {self.d_model} is not a multiple of n_heads = {self.n_heads}: change one, or give d_head"
            )
        if self.n_heads % self.kv_heads:
            raise ValueError(
                f"n_kv_heads = {self.n_kv_heads} does not divide n_heads = {self.n_heads}: "
                "each key-value head serves an equal number of query heads"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"RoPE rotates pairs, so the head size {self.head_dim} must be even")

    @property
    def head_dim(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def gated(self) -> bool:
        return self.feed_forward in GATED

    @property
    def ff_width(self) -> int:
        if self.d_ff is not None:
            return self.d_ff
        width = (self.ff_ratio or (8 / 3 if self.gated else 4)) * self.d_model
        return -int(-width // self.ff_multiple_of) * self.ff_multiple_of

    @property
    def layer_mixers(self) -> tuple[str, ...]:
        """The mixer of each layer: `pattern` repeated over depth."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.n_layers))

    def with_vocabulary(self, vocab_size: int) -> Self:
        """With the tokenizer's size; ValueError if the config names one that is too small for it."""
        if self.vocab_size and self.vocab_size < vocab_size:
            raise ValueError(
                f"vocab_size = {self.vocab_size} is smaller than the tokenizer's {vocab_size}: "
                "leave it out (0), or give at least that"
            )
        return self if self.vocab_size else replace(self, vocab_size=vocab_size)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From plain JSON; ValueError names an unknown key."""
        known = {f.name for f in fields(cls)}
        for key in values:
            _choose("a model's config key", key, tuple(known))
        return cls(**values)


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. `batch_size` counts the rows of the *global* batch, over all workers."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    steps: int = 1000
    batch_size: int = 32
    seq_len: int = 256
    lr: float = 1e-3
    min_lr_ratio: float = 0.1
    warmup_steps: int = 50
    schedule: Schedule = "cosine"
    decay_fraction: float = 0.2  # of the steps, for "wsd"
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0  # of the global gradient norm; 0: off
    z_loss: float = 0.0  # times logsumexp(logits)^2
    precision: Precision = "auto"
    micro_batch_size: int | None = field(default=None, metadata=HOW)  # rows at once on a worker; None: ~4k tokens
    checkpoint_every: int = field(default=200, metadata=HOW)  # steps; 0: only at the end or when stopped
    activation_checkpointing: Checkpointing = field(default="none", metadata=HOW)

    def __post_init__(self) -> None:
        _choose("schedule", self.schedule, get_args(Schedule))
        _choose("optimizer", self.optimizer, get_args(Optimizer))
        _choose("precision", self.precision, get_args(Precision))
        _choose("activation_checkpointing", self.activation_checkpointing, get_args(Checkpointing))
        for name in ("steps", "batch_size", "micro_batch_size"):
            _at_least(name, getattr(self, name), 1)
        _at_least("seq_len", self.seq_len, 2)
        for name in ("warmup_steps", "checkpoint_every", "weight_decay", "grad_clip", "z_loss"):
            _at_least(name, getattr(self, name), 0)
        if not self.lr > 0:
            raise ValueError(f"lr = {self.lr} must be greater than 0")
        for name in ("min_lr_ratio", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be between 0 and 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 0 and below 1")
