"""What a quantization says of its result: how much smaller, how much worse, how much faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.quantities import count, size
from cluster.report import Block, Table, Text
from cluster.stage import Summary

if TYPE_CHECKING:
    from cluster.store.artifact import Artifact


@dataclass(frozen=True)
class QuantizeSummary(Summary):
    """Sizes in bytes. What was not measured is None: bits per byte without text, tokens/s of a diffusion model."""

    kind: str = ""
    method: str = ""
    parameters: int = 0
    linears: int = 0  # quantized
    in_int8: int = 0  # of those that were to be int4: groups don't come out even
    linear_parameters: int = 0
    linear_bytes: int = 0
    bytes: int = 0  # of all weights
    bytes_before: int = 0
    bpb: float | None = None
    bpb_before: float | None = None
    tokens_per_second: float | None = None
    tokens_per_second_before: float | None = None

    @property
    def smaller(self) -> float:
        """How many times smaller than the same weights in bfloat16."""
        return 2 * self.parameters / max(self.bytes, 1)

    def words(self) -> str:
        words = [f"{self.kind} by {self.method}, {size(self.bytes)}, {self.smaller:.2f}x smaller than bf16"]
        if self.in_int8:
            words.append(f"{self.in_int8} of {self.linears} linears in int8: their inputs don't divide into groups")
        if self.bpb is not None and self.bpb_before is not None:
            words.append(f"{self.bpb_before:.3f} -> {self.bpb:.3f} bits per byte")
        if self.tokens_per_second is not None and self.tokens_per_second_before is not None:
            words.append(f"{count(self.tokens_per_second_before)} -> {count(self.tokens_per_second)} tok/s at batch 1")
        return ", ".join(words)

    def report(self, artifact: Artifact) -> Sequence[Block]:
        def shown(value: float | None, form: str) -> str:
            return "not measured" if value is None else format(value, form)

        rows = [
            ["file of weights", size(self.bytes_before), size(self.bytes)],
            ["all weights, against bf16", "1x", f"{self.smaller:.2f}x smaller"],
            [
                f"the {self.linears} quantized linears, against bf16",
                "1x",
                f"{2 * self.linear_parameters / max(self.linear_bytes, 1):.2f}x smaller",
            ],
            ["bits per byte, held out", shown(self.bpb_before, ".4f"), shown(self.bpb, ".4f")],
            [
                "tokens/s, batch 1, this machine",
                shown(self.tokens_per_second_before, ".1f"),
                shown(self.tokens_per_second, ".1f"),
            ],
        ]
        return [Text(self.words()), Table("Before and after", ["", "before", "after"], rows)]
