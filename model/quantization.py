"""How a model is quantized: plain data without torch, which a folder's config.json keeps as `quantization`."""

from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, Literal, Self

from model.checks import check_kinds, choose
from model.errors import Missing, UserError, did_you_mean

Kind = Literal["int8", "int8-dynamic", "int4"]
PACKED, BESIDE = "packed_OJ", ("scale_O", "scale_ON", "zero_ON")  # tensors of a quantized linear; two codes a byte
KINDS: tuple[Kind, ...] = ("int8", "int8-dynamic", "int4")
KEPT = ("head", "*router")  # beside embeddings and norms, which are no linears


@dataclass(frozen=True)
class Quantization:
    """layers: each quantized linear by its name, an expert's as `blocks.0.feed_forward.up.3`, and how it is kept."""

    kind: Kind
    group_size: int = 64
    method: str = "rtn"
    layers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choose("quantization's kind", self.kind, KINDS)
        if self.group_size < 2 or self.group_size % 2:
            raise UserError(f"quantization's group_size is {self.group_size}: an even number is needed")
        for how in self.layers.values():
            choose("a quantized layer's kind", how, KINDS)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From plain JSON; UserError names an unknown key."""
        for key in values:
            choose("quantization's key", key, tuple(f.name for f in fields(cls)))
        if "kind" not in values:
            raise UserError("quantization says no kind")
        check_kinds(cls, values)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def weights_in(name: str, values: int) -> int:
    """How many weights a tensor of so many values holds, by its name."""
    last = name.rpartition(".")[2]
    return 0 if last in BESIDE else values * 2 if last == PACKED else values


def chosen(names: list[str], keep: tuple[str, ...]) -> list[str]:
    """The linears that are to be quantized: those that no pattern of `keep` matches.

    A pattern (`*` stands for anything) is for whole names, such as `blocks.0.*` or `*.down`.

    Raises:
        Missing: a pattern that isn't one of the defaults matches none, or all linears are kept.
    """
    for pattern in keep:
        if pattern not in KEPT and not any(fnmatchcase(name, pattern) for name in names):
            hint = did_you_mean(pattern, names)
            raise Missing(f"keep: {pattern!r} matches no linear of this model.{hint} There is e.g. {names[0]!r}.")
    found = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in keep)]
    if not found:
        raise UserError(f"keep = {list(keep)} keeps every linear: nothing would be quantized.")
    return found
