"""The keys of RoPE: theta, the share of a head that is turned, and how it is stretched to long contexts.

transformers 5 writes all in one place, `rope_parameters`; before, it was `rope_theta`, `rope_scaling` and
`partial_rotary_factor`. Both are read, and both written, so that either reads what we write.

    rope_type   default   linear   yarn   llama3        dynamic, longrope, …: refused, they have no counterpart
    ours        None      linear   yarn   llama3        ours "ntk" is a default one with a larger theta
"""

import math
from dataclasses import dataclass
from typing import Any

from model.config import ModelConfig
from model.interop.keys import Ours, Theirs, Unsupported
from model.part_configs import RopeScaling

KINDS = ("default", "linear", "yarn", "llama3")


@dataclass(frozen=True)
class Rope:
    """The positions of a family whose default theta is `theta`.

    fraction: what it turns of each head where no key says; None: whole heads, whatever a key says, as its model in
        `transformers` never asks.
    """

    theta: float = 10_000.0
    fraction: float | None = None

    def read(self, theirs: Theirs) -> Ours:
        given = theirs.get("rope_scaling") or theirs.get("rope_parameters") or {}
        scaling, fraction = read_scaling(given, theirs), _fraction(given, theirs, self.fraction or 1.0)
        if self.fraction is None and fraction != 1:
            if scaling is not None:
                raise Unsupported.key("partial_rotary_factor", fraction, "this architecture turns whole heads")
            fraction = 1.0
        return {
            "position": "rope",
            "rope_theta": float(given.get("rope_theta") or theirs.get("rope_theta") or self.theta),
            "rope_fraction": fraction,
            "rope_scaling": scaling,
        }

    def write(self, config: ModelConfig) -> Theirs:
        parameters = write_scaling(config)
        partial = {} if self.fraction is None else {"partial_rotary_factor": config.rope_fraction}
        scaling = None if parameters["rope_type"] == "default" else _without_theta(parameters)
        return {
            "rope_parameters": parameters | partial,
            "rope_theta": parameters["rope_theta"],
            "rope_scaling": scaling,
            **partial,
        }


@dataclass(frozen=True)
class LocalRope:
    """Gemma 3's: the global layers' theta and scaling, and a theta of their own for the local ones."""

    theta: float = 1_000_000.0
    local: float = 10_000.0

    def read(self, theirs: Theirs) -> Ours:
        both = theirs.get("rope_parameters") or {}
        everywhere = (both.get("full_attention") or {}) | (theirs.get("rope_scaling") or {})
        local = both.get("sliding_attention") or {}
        if local.get("rope_type", "default") != "default":
            raise Unsupported.key(
                "rope_parameters.sliding_attention.rope_type", local["rope_type"], "local layers are never stretched"
            )
        return {
            "position": "rope",
            "rope_theta": float(everywhere.get("rope_theta") or theirs.get("rope_theta") or self.theta),
            "rope_theta_local": float(local.get("rope_theta") or theirs.get("rope_local_base_freq") or self.local),
            "rope_scaling": read_scaling(everywhere, theirs),
        }

    def write(self, config: ModelConfig) -> Theirs:
        parameters = write_scaling(config)
        local = config.rope_theta_local or parameters["rope_theta"]
        return {
            "rope_parameters": {
                "full_attention": parameters,
                "sliding_attention": {"rope_type": "default", "rope_theta": local},
            },
            "rope_theta": parameters["rope_theta"],
            "rope_local_base_freq": local,
            "rope_scaling": None if parameters["rope_type"] == "default" else _without_theta(parameters),
        }


def _fraction(given: dict[str, Any], theirs: Theirs, default: float) -> float:
    found = given.get("partial_rotary_factor", theirs.get("partial_rotary_factor"))
    return default if found is None else float(found)


def _without_theta(parameters: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in parameters.items() if k != "rope_theta"}


def read_scaling(given: dict[str, Any], theirs: Theirs) -> RopeScaling | None:
    """Raises Unsupported for a kind that we don't have."""
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in KINDS:
        raise Unsupported.key("rope_type", kind, f"supported are {', '.join(KINDS)}")
    if kind == "default":
        return None
    original = _original(given, theirs)
    factor = float(given.get("factor") or theirs["max_position_embeddings"] / original)
    if kind == "linear":
        return RopeScaling("linear", factor, original)
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            factor,
            original,
            low_freq_factor=float(given["low_freq_factor"]),
            high_freq_factor=float(given["high_freq_factor"]),
        )
    if given.get("truncate", True) is not True:
        raise Unsupported.key("rope_scaling.truncate", given["truncate"], "yarn's range is rounded to whole pairs")
    return RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=float(given.get("beta_fast") or 32),
        beta_slow=float(given.get("beta_slow") or 1),
        attention_factor=_attention_factor(given, factor),
    )


def _original(given: dict[str, Any], theirs: Theirs) -> int:
    found = given.get("original_max_position_embeddings") or theirs.get("original_max_position_embeddings")
    return int(found or theirs.get("max_position_embeddings") or 2048)


def _attention_factor(given: dict[str, Any], factor: float) -> float | None:
    """YaRN's; DeepSeek's variant gives it as the quotient of two."""
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    one, all_ = given.get("mscale"), given.get("mscale_all_dim")
    if one and all_:
        return (0.1 * one * math.log(factor) + 1) / (0.1 * all_ * math.log(factor) + 1)
    return None


def write_scaling(config: ModelConfig) -> dict[str, Any]:
    """`rope_parameters` of transformers 5."""
    scaling, theta = config.rope_scaling, config.rope_theta
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    if scaling.kind == "ntk":
        return {"rope_type": "default", "rope_theta": ntk_theta(config)}
    written: dict[str, Any] = {"rope_type": scaling.kind, "rope_theta": theta, "factor": scaling.factor}
    if scaling.kind == "linear":
        return written
    written["original_max_position_embeddings"] = scaling.original_max_len
    if scaling.kind == "llama3":
        written |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    else:
        written |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        if scaling.attention_factor is not None:
            written["attention_factor"] = scaling.attention_factor
    return written


def ntk_theta(config: ModelConfig) -> float:
    """The theta that our "ntk" scaling amounts to (model/layers/rope.py)."""
    assert config.rope_scaling is not None
    return config.rope_theta * config.rope_scaling.factor ** (config.rope_dim / max(1, config.rope_dim - 2))
