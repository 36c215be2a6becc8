"""What a model is: a plain frozen dataclass, without torch.

Each architecture upgrade is one field whose default is the usual small Llama. Pydantic reads it as a part of a recipe
(`__pydantic_config__` forbids unknown keys); `__post_init__` refuses what can't work, in words for a person.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, get_args

from model.checks import at_least, check_kinds, choose, positive
from model.errors import UserError
from model.mixers import MIXERS, TWO_WAY
from model.part_configs import (
    H3Config,
    LinearAttentionConfig,
    Mamba2Config,
    MoeConfig,
    RgLruConfig,
    RopeScaling,
    ShortConvConfig,
)

FeedForward = Literal["swiglu", "geglu", "gelu", "relu2"]
LayerFeedForward = Literal["dense", "moe", "none"]
Norm = Literal["rmsnorm", "rmsnorm_plus_one", "layernorm"]
NormPosition = Literal["pre", "post", "sandwich"]
Position = Literal["rope", "learned", "none"]
QKNormOver = Literal["head", "all"]

GATED = ("swiglu", "geglu")


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
    ff_bias: bool | None = None  # of the feed-forward's layers; None: bias
    ff_pattern: tuple[LayerFeedForward, ...] = ("dense",)  # repeated over depth, as `pattern` is
    moe: MoeConfig = MoeConfig()  # of the layers that ff_pattern calls "moe"
    norm: Norm = "rmsnorm"  # "rmsnorm_plus_one": weights are kept as their distance from 1 (Gemma)
    norm_eps: float = 1e-5
    norm_position: NormPosition = "pre"  # of a sublayer f: x + f(norm(x)); x + norm(f(x)); x + norm(f(norm(x)))
    position: Position = "rope"
    rope_theta: float = 10_000.0
    rope_theta_local: float | None = None  # of "window" layers; None: rope_theta, and unscaled if this is given
    rope_fraction: float = 1.0  # share of each head's channels that is rotated
    rope_scaling: RopeScaling | None = None
    max_seq_len: int = 2048  # rows of learned positions; the longest context to generate in
    tie_embeddings: bool = True
    embedding_scale: float = 1.0  # times the embedding's rows on their way in
    causal: bool = True  # False: attention sees its whole document (masked diffusion)
    qk_norm: bool = False  # RMSNorm over queries and keys
    qk_norm_over: QKNormOver = "head"  # over each head, or over all heads at once (OLMo 2)
    attention_scale: float | None = None  # times q k; None: 1 / sqrt(head size)
    window: int = 1024  # keys that a query of a "window" layer sees, its own included
    global_tokens: int = 0  # first tokens of a document that "window" layers see from everywhere (Longformer)
    bias: bool = False  # in the linear layers, and in LayerNorm
    qkv_bias: bool | None = None  # None: bias
    out_bias: bool | None = None  # of the mixers' output; None: bias
    logit_softcap: float | None = None  # c * tanh(logits / c)
    init_std: float = 0.02
    mup_base_width: int | None = None  # widths other than this keep its learning rates (muP); None: off
    mup_base_d_head: int | None = None  # head size at that width; None: this one's, wider models have more heads
    pattern: tuple[str, ...] = ("attention",)  # mixers by name, repeated over depth
    linear_attention: LinearAttentionConfig = LinearAttentionConfig()
    mamba2: Mamba2Config = Mamba2Config()
    h3: H3Config = H3Config()
    rg_lru: RgLruConfig = RgLruConfig()
    short_conv: ShortConvConfig = ShortConvConfig()

    def __post_init__(self) -> None:
        choose("feed_forward", self.feed_forward, get_args(FeedForward))
        choose("norm", self.norm, get_args(Norm))
        choose("norm_position", self.norm_position, get_args(NormPosition))
        choose("position", self.position, get_args(Position))
        choose("qk_norm_over", self.qk_norm_over, get_args(QKNormOver))
        for name, allowed, example in (
            ("pattern", tuple(MIXERS), "attention"),
            ("ff_pattern", get_args(LayerFeedForward), "dense"),
        ):
            if not isinstance(getattr(self, name), tuple):
                object.__setattr__(self, name, tuple(getattr(self, name)))
            if not getattr(self, name):
                raise UserError(f"{name} is empty: name at least one, e.g. [{example!r}]")
            for part in getattr(self, name):
                choose(name, part, allowed)
        for f in fields(self):  # from plain JSON
            if isinstance(getattr(self, f.name), dict):
                object.__setattr__(self, f.name, _PARTS[f.name](**getattr(self, f.name)))
        for name in (
            "d_model",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "d_head",
            "d_ff",
            "ff_multiple_of",
            "max_seq_len",
            "window",
            "mup_base_width",
            "mup_base_d_head",
        ):
            at_least(name, getattr(self, name), 1)
        at_least("vocab_size", self.vocab_size, 0)
        at_least("global_tokens", self.global_tokens, 0)
        for name in (
            "ff_ratio",
            "norm_eps",
            "rope_theta",
            "rope_theta_local",
            "embedding_scale",
            "attention_scale",
            "logit_softcap",
            "init_std",
        ):
            positive(name, getattr(self, name))
        if self.d_head is None and self.d_model % self.n_heads:
            raise UserError(
                f"d_model = {self.d_model} is not a multiple of n_heads = {self.n_heads}: change one, or give d_head"
            )
        if self.n_heads % self.kv_heads:
            raise UserError(
                f"n_kv_heads = {self.n_kv_heads} does not divide n_heads = {self.n_heads}: "
                "each key-value head serves an equal number of query heads"
            )
        one_way = [] if self.causal else sorted(set(self.pattern) - set(TWO_WAY))
        if one_way:
            raise UserError(
                f"causal = false needs mixers that can look both ways, {' and '.join(TWO_WAY)}: "
                f"pattern has {', '.join(one_way)}, which only goes forward"
            )
        if "moe" in self.ff_pattern and (self.d_model % 8 or self.expert_width % 8):
            raise UserError(
                f"d_model = {self.d_model} and the experts' width = {self.expert_width} must be multiples of 8: in "
                "torch's grouped product rows are whole 16 bytes (moe.d_ff, or it follows from d_ff and ff_multiple_of)"
            )
        if not 0 < self.rope_fraction <= 1:
            raise UserError(f"rope_fraction = {self.rope_fraction} must be greater than 0 and at most 1")
        if self.position == "rope" and self.rope_dim % 2:
            raise UserError(
                f"RoPE rotates pairs, so rope_fraction * head size = {self.rope_dim} must be even: change d_head"
            )

    @property
    def mask_id(self) -> int | None:
        """The [MASK] of masked diffusion: the last row, after the tokenizer's. None for a causal model."""
        return None if self.causal else self.vocab_size - 1

    @property
    def head_dim(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def rope_dim(self) -> int:
        """Channels of a head that RoPE rotates, the first ones."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def has_qkv_bias(self) -> bool:
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def has_out_bias(self) -> bool:
        return self.bias if self.out_bias is None else self.out_bias

    @property
    def has_ff_bias(self) -> bool:
        return self.bias if self.ff_bias is None else self.ff_bias

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

    @property
    def layer_feed_forwards(self) -> tuple[str, ...]:
        """The kind of each layer's feed-forward: `ff_pattern` repeated over depth."""
        return tuple(self.ff_pattern[i % len(self.ff_pattern)] for i in range(self.n_layers))

    @property
    def expert_width(self) -> int:
        if self.moe.d_ff is not None:
            return self.moe.d_ff
        active = self.moe.top_k + self.moe.n_shared
        return -int(-self.ff_width // (active * self.ff_multiple_of)) * self.ff_multiple_of

    def with_vocabulary(self, vocab_size: int) -> Self:
        """With the tokenizer's size, and a row for [MASK] if not causal; ValueError if the config's is too small."""
        rows = vocab_size if self.causal else vocab_size + 1
        if self.vocab_size and self.vocab_size < rows:
            mask = "" if self.causal else ", [MASK] included"
            raise UserError(
                f"vocab_size = {self.vocab_size} is smaller than the tokenizer's {rows}{mask}: "
                "leave it out (0), or give at least that"
            )
        return self if self.vocab_size else replace(self, vocab_size=rows)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From plain JSON; ValueError names an unknown key."""
        known = {f.name for f in fields(cls)}
        for key in values:
            choose("a model's config key", key, tuple(known))
        check_kinds(cls, values)
        return cls(**values)


_PARTS = {
    "rope_scaling": RopeScaling,
    "moe": MoeConfig,
    "linear_attention": LinearAttentionConfig,
    "mamba2": Mamba2Config,
    "h3": H3Config,
    "rg_lru": RgLruConfig,
    "short_conv": ShortConvConfig,
}
