"""Whether a config's sizes can be those of the file that it came with: asked before anything is made of them.

A number costs its author nothing. What is made of it here, a table of RoPE's frequencies or the names of all layers,
grows with it; so none is believed that the file's own tensors and bytes can't bear out.
"""

from dataclasses import fields, is_dataclass
from typing import Any

from model.config import ModelConfig
from model.errors import UserError

SMALL = 1 << 16  # costs nothing, whatever it is of
NO_SIDES = {  # of tensors: they say how far one looks, or how work is cut up
    *("max_seq_len", "window", "global_tokens", "chunk", "original_max_len", "ff_multiple_of"),
    *("mup_base_width", "mup_base_d_head"),
}


def check_sizes(config: ModelConfig, tensors: int, size: int) -> None:
    """Raises UserError for more layers than `tensors`, or for a side of a tensor longer than the file's bytes."""
    if config.n_layers > tensors:
        raise UserError(f"says {config.n_layers} layers, but the weights have {tensors} tensors")
    sides = dict(_numbers(config)) | {"d_head": config.head_dim, "d_ff": config.ff_width}
    if config.position == "learned":
        sides["max_seq_len"] = config.max_seq_len
    if "moe" in config.ff_pattern:
        sides["moe.d_ff"] = config.expert_width
    for name, side in sides.items():
        if side > max(size, SMALL):
            raise UserError(f"says {name} = {_short(side)}, but the weights have {size:,} bytes in all")


def _numbers(part: Any, prefix: str = "") -> list[tuple[str, int]]:
    found = []
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            found += _numbers(value, f"{field.name}.")
        elif isinstance(value, int) and field.name not in NO_SIDES:
            found.append((prefix + field.name, value))
    return found


def _short(number: int) -> str:
    return f"{number:,}" if number < 1 << 64 else "a number of more than 64 bits"
