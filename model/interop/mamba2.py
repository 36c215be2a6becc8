"""Mamba-2 (Dao & Gu 2024, arXiv 2405.21060): no attention, no feed-forward, no positions."""

from collections.abc import Iterator
from dataclasses import dataclass

from model.config import ModelConfig
from model.interop.family import Family
from model.interop.keys import Always, Key, Only, Ours, Theirs, Unsupported, value
from model.interop.parts import ends
from model.interop.weights import Pair, same

ENDLESS = 1 << 20  # tokens; nothing in these models depends on a longest context


@dataclass(frozen=True)
class Heads:
    """Heads times their size must be the inner width, since ours follow from it."""

    def read(self, theirs: Theirs) -> Ours:
        inner = theirs.get("expand", 2) * theirs.get("hidden_size", 4096)
        heads, size = theirs.get("num_heads", 128), theirs.get("head_dim", 64)
        if heads * size != inner:
            raise Unsupported.key("num_heads", heads, f"expand * hidden_size / head_dim = {inner / size:g}")
        return {"mamba2.head_dim": size}

    def write(self, config: ModelConfig) -> Theirs:
        m = config.mamba2
        return {"num_heads": m.expand * config.d_model // m.head_dim, "head_dim": m.head_dim}


@dataclass(frozen=True)
class StepLimit:
    """Step sizes that are clamped are refused; JSON has no infinity, so it is kept as a string or Infinity."""

    theirs: str = "time_step_limit"

    def read(self, theirs: Theirs) -> Ours:
        limit = theirs.get(self.theirs)
        if limit is not None and tuple(_number(x) for x in limit) != (0.0, float("inf")):
            raise Unsupported.key(self.theirs, limit, "step sizes that are not clamped: [0.0, Infinity]")
        return {}

    def write(self, config: ModelConfig) -> Theirs:
        return {}


def _number(x: object) -> float:
    """transformers writes an infinity as {"__float__": "Infinity"}."""
    return float(x["__float__"] if isinstance(x, dict) else x)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ProjectionBias:
    """One key for the biases into and out of the mixer."""

    theirs: str

    def read(self, theirs: Theirs) -> Ours:
        bias = bool(theirs.get(self.theirs, False))
        return {"bias": bias, "out_bias": bias}

    def write(self, config: ModelConfig) -> Theirs:
        return {self.theirs: value(config, "bias")}


def mixer(c: ModelConfig, ours: str, theirs: str) -> Iterator[Pair]:
    """Both keep the names and layout of the paper's code."""
    names = ["in_proj.weight", "conv1d.weight", "dt_bias", "A_log", "D", "norm.weight", "out_proj.weight"]
    names += ["conv1d.bias"] if c.mamba2.conv_bias else []
    names += ["in_proj.bias"] if c.bias else []
    names += ["out_proj.bias"] if value(c, "out_bias") else []
    for name in names:
        yield same(f"{ours}.{name}", f"{theirs}.{name}")


def weights(c: ModelConfig) -> Iterator[Pair]:
    yield from ends(c, norm="backbone.norm_f", embedding="backbone.embeddings")
    for i in range(c.n_layers):
        yield same(f"blocks.{i}.mixer_norm.weight", f"backbone.layers.{i}.norm.weight")
        yield from mixer(c, f"blocks.{i}.mixer", f"backbone.layers.{i}.mixer")


FAMILIES = (
    Family(
        "Mamba2ForCausalLM",
        "mamba2",
        (
            Key("vocab_size", "vocab_size", 32_768),
            Key("hidden_size", "d_model", 4096),
            Key("num_hidden_layers", "n_layers", 64),
            Key("layer_norm_epsilon", "norm_eps", 1e-5),
            Key("initializer_range", "init_std", 0.1),
            Key("state_size", "mamba2.d_state", 128),
            Key("expand", "mamba2.expand", 2),
            Key("n_groups", "mamba2.n_groups", 8),
            Key("conv_kernel", "mamba2.conv_width", 4),
            Key("use_conv_bias", "mamba2.conv_bias", True),
            Key("tie_word_embeddings", "tie_embeddings", False),
            Heads(),
            ProjectionBias("use_bias"),
            StepLimit(),
            Only("hidden_act", ("silu", "swish"), "silu"),
            Only("rms_norm", (True,), True),
            Always(
                norm="rmsnorm",
                position="none",
                pattern=("mamba2",),
                ff_pattern=("none",),
                max_seq_len=ENDLESS,
                n_heads=1,  # no attention: a number that divides any width
            ),
        ),
        weights,
        prefix="backbone.",
    ),
)
