"""The settings of single parts of a model, each a table of its own in a recipe (`[model.moe]`, `[model.mamba2]`, …)."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from model.checks import HOW, at_least, choose, positive
from model.errors import UserError

RopeKind = Literal["linear", "ntk", "yarn", "llama3"]
Balance = Literal["loss", "bias", "none"]


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE's frequencies are stretched to contexts longer than the ones trained on.

    linear (position interpolation), ntk (a larger theta), yarn (by wavelength, with a temperature), llama3.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (pydantic's protocol; not a field)

    kind: RopeKind = "yarn"
    factor: float = 1.0  # new context / old context
    original_max_len: int = 2048  # the context that the weights were trained on
    beta_fast: float = 32.0  # yarn: pairs that turn more often than this are left alone
    beta_slow: float = 1.0  # yarn: pairs that turn less often are interpolated
    attention_factor: float | None = None  # yarn: scales q and k; None: 0.1 ln(factor) + 1
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3

    def __post_init__(self) -> None:
        choose("rope_scaling.kind", self.kind, get_args(RopeKind))
        at_least("rope_scaling.factor", self.factor, 1)
        at_least("rope_scaling.original_max_len", self.original_max_len, 1)
        for name in ("beta_fast", "beta_slow", "attention_factor", "low_freq_factor", "high_freq_factor"):
            positive(f"rope_scaling.{name}", getattr(self, name))
        for fewer, more in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
            if not getattr(self, fewer) < getattr(self, more):
                raise UserError(
                    f"rope_scaling.{fewer} = {getattr(self, fewer)} must be less than {more} = {getattr(self, more)}"
                )


@dataclass(frozen=True)
class MoeConfig:
    """Mixture of experts: a router sends each token to `top_k` of `n_experts` feed-forwards, which have no biases."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    n_experts: int = 8
    top_k: int = 2
    d_ff: int | None = None  # width of one expert; None: dense width / active experts: same active size
    n_shared: int = 0  # experts that see every token, as one feed-forward of n_shared * d_ff
    normalise: bool = True  # the chosen experts' weights add up to 1
    balance: Balance = "loss"  # "loss": Switch's; "bias": loss-free, DeepSeek-V3's
    balance_coef: float = 0.01  # of the load-balancing loss
    bias_rate: float = 0.001  # a step's nudge of the loss-free bias
    z_loss: float = 0.001  # of the router's logsumexp^2 (ST-MoE)

    def __post_init__(self) -> None:
        choose("moe.balance", self.balance, get_args(Balance))
        for name in ("n_experts", "top_k", "d_ff"):
            at_least(f"moe.{name}", getattr(self, name), 1)
        for name in ("n_shared", "balance_coef", "bias_rate", "z_loss"):
            at_least(f"moe.{name}", getattr(self, name), 0)
        if self.top_k > self.n_experts:
            raise UserError(f"moe.top_k = {self.top_k} is more than moe.n_experts = {self.n_experts}")


@dataclass(frozen=True)
class LinearAttentionConfig:
    """Gated linear attention, of `ModelConfig`'s heads."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    chunk: int = field(default=32, metadata=HOW)  # tokens that are mixed by one dense product, at most 32

    def __post_init__(self) -> None:
        at_least("linear_attention.chunk", self.chunk, 1)
        if self.chunk > 32:
            raise UserError(f"linear_attention.chunk = {self.chunk} is too large: above 32 its decays may leave fp32")


@dataclass(frozen=True)
class Mamba2Config:
    """Mamba-2 (SSD): heads of `head_dim` channels, each with a state of `d_state`."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    d_state: int = 64
    head_dim: int = 64
    expand: int = 2  # channels / d_model
    n_groups: int = 1  # heads that share B and C
    conv_width: int = 4
    conv_bias: bool = True
    chunk: int = field(default=64, metadata=HOW)  # tokens that are mixed by one dense product

    def __post_init__(self) -> None:
        for name in ("d_state", "head_dim", "expand", "n_groups", "conv_width", "chunk"):
            at_least(f"mamba2.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class H3Config:
    """H3: a shift SSM and a diagonal SSM between three gates."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    d_state: int = 64  # of the diagonal SSM
    head_dim: int = 1  # channels of k and v that share one state, as a matrix
    shift: int = 4  # taps of the shift SSM
    chunk: int = field(default=64, metadata=HOW)  # tokens that are mixed by one dense product

    def __post_init__(self) -> None:
        for name in ("d_state", "head_dim", "shift", "chunk"):
            at_least(f"h3.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class RgLruConfig:
    """Griffin's recurrent block: a short convolution and a real-gated linear recurrent unit."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    width: int | None = None  # channels; None: d_model
    n_blocks: int | None = None  # blocks of the gates' block-diagonal matrices; None: n_heads
    conv_width: int = 4

    def __post_init__(self) -> None:
        for name in ("width", "n_blocks", "conv_width"):
            at_least(f"rg_lru.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class ShortConvConfig:
    """Gated short convolution (LFM2): C * conv(B * x)."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    conv_width: int = 3
    bias: bool | None = None  # in all three of its parts; None: as elsewhere

    def __post_init__(self) -> None:
        at_least("short_conv.conv_width", self.conv_width, 1)
