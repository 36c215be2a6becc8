"""Which of llama.cpp's architectures holds a model of ours, and its tensors by llama.cpp's names.

    ours ─ model/interop's family ─▶ Hugging Face's names and layout ─ the library's names ─▶ blk.0.attn_q.weight

Only those are here that another reader than ours gives the same logits for (tests/cluster/interop/test_gguf.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import UserError

if TYPE_CHECKING:
    import torch

    from model.config import ModelConfig
    from model.interop.family import Family


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's.

    Args:
        family: Hugging Face's, which has the same tensors.
        neighbours: its RoPE turns neighbouring channels, as ours does, and not those half a head apart.
        misfits: what of a config it can't hold although the family can.
        describe: (writer, config) adds the keys that are its own.
    """

    name: str
    family: str
    neighbours: bool = False
    misfits: Callable[[ModelConfig], list[str]] = lambda config: []
    describe: Callable[[Any, ModelConfig], None] = lambda writer, config: None


def _biases(config: ModelConfig) -> list[str]:
    from model.interop.keys import value

    return [f"{name} = true" for name in ("qkv_bias", "out_bias", "ff_bias") if value(config, name)]


def _mixture(config: ModelConfig) -> list[str]:
    dense = [] if set(config.layer_feed_forwards) == {"moe"} else ["layers that are no mixture"]
    return [*dense, *_biases(config), *([] if config.moe.normalise else ["moe.normalise = false"])]


def _experts(writer: Any, config: ModelConfig) -> None:
    writer.add_expert_count(config.moe.n_experts)
    writer.add_expert_used_count(config.moe.top_k)
    writer.add_expert_feed_forward_length(config.expert_width)


ARCHITECTURES = (
    Architecture("llama", "LlamaForCausalLM", neighbours=True, misfits=_biases),
    Architecture("qwen3", "Qwen3ForCausalLM", misfits=_biases),
    Architecture("qwen2", "Qwen2ForCausalLM"),
    Architecture("qwen3moe", "Qwen3MoeForCausalLM", misfits=_mixture, describe=_experts),
)


def architecture_for(config: ModelConfig) -> Architecture:
    """The first that holds the model. Raises UserError with what doesn't fit the one that is nearest."""
    from model.interop.family import family_named

    found: list[tuple[list[str], Architecture]] = []
    for one in ARCHITECTURES:
        misfits = [*family_named(one.family).misfits(config), *one.misfits(config)]
        if "window" in config.layer_mixers:
            misfits.append("layers of attention that see a window")
        if config.rope_scaling is not None:
            misfits.append(f"rope_scaling.kind = {config.rope_scaling.kind!r}")
        if not misfits:
            return one
        found.append((misfits, one))
    misfits, nearest = min(found, key=lambda pair: len(pair[0]))
    raise UserError(
        f"A GGUF file is written of models in the shape of {', '.join(one.name for one in ARCHITECTURES)}. "
        f"The nearest is {nearest.name}; this doesn't fit: {'; '.join(dict.fromkeys(misfits))}."
    )


def tensors(source: Path, config: ModelConfig, architecture: Architecture) -> Iterator[tuple[str, torch.Tensor]]:
    """llama.cpp's names and float32 values."""
    import gguf
    from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES

    from model.interop.family import family_named
    from model.interop.folder import Weights

    family: Family = family_named(architecture.family)
    known = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == architecture.name)
    table = gguf.get_tensor_name_map(known, config.n_layers)
    with Weights(source) as weights:
        for pair in family.weights(config):
            for theirs, tensor in _parts(pair, weights[pair.ours], config, architecture):
                name = table.get_name(theirs, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise RuntimeError(f"{theirs} has no name in llama.cpp's {architecture.name}.")
                yield name, tensor.float()


def _parts(
    pair: Any, ours: torch.Tensor, config: ModelConfig, architecture: Architecture
) -> Iterator[tuple[str, torch.Tensor]]:
    """A pair's tensors under Hugging Face's names; a stack of experts is one tensor here."""
    from model.interop.weights import Stacked, Turned

    if isinstance(pair.layout, Stacked):
        yield re.sub(r"\.experts\.\d+\.", ".experts.", pair.theirs[0]), ours
        return
    turned = Turned(config.head_dim, config.rope_dim)
    for theirs, tensor in zip(pair.theirs, pair.layout.split(ours), strict=True):
        back = architecture.neighbours and theirs.rpartition(".")[0].endswith(("q_proj", "k_proj"))
        yield theirs, turned.join([tensor]) if back and config.position == "rope" else tensor
