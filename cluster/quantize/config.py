"""`[quantize]` of a recipe: to what, by which method, with which text, and what stays as it is. Read without torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.errors import UserError
from model.quantization import KEPT, Kind
from model.train_config import TrainConfig

Method = Literal["rtn", "gptq", "awq", "smoothquant"]


class CalibrationConfig(BaseModel):
    """Text that a method looks at, drawn from the line's packed tokens in the order of training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int = Field(32768, gt=0, description="at least so many, in whole rows")
    seq_len: int | None = Field(None, gt=1, description="of a row; default: the model's context, 512 at most")


class QatTable(BaseModel):
    """`[quantize.qat]`: training with rounded weights, before they are quantized."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: TrainConfig = TrainConfig(steps=100, lr=2e-4, warmup_steps=10)


class QuantizeConfig(BaseModel):
    """`[quantize]` of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = Field("int8", description="int8-dynamic rounds activations too")
    method: Method = Field("rtn", description="rtn: to the nearest; gptq; awq; smoothquant: see model/quantize")
    group_size: Literal[32, 64, 128, 256] = Field(64, description="of int4: inputs that share a scale and a zero")
    act_order: bool = Field(False, description="of gptq: the inputs that matter most come first")
    calibration: CalibrationConfig = CalibrationConfig.model_validate({})
    keep: tuple[str, ...] = Field(
        KEPT, description="linears that stay as they are, as patterns of names; embeddings and norms always do"
    )
    qat: QatTable | None = Field(None, description="train on with rounded weights first; by method rtn")
    seed: int = Field(0, description="of the order that calibration rows are drawn in")
    validation_mb: float = Field(0.25, gt=0, description="held-out text per source for bits per byte before and after")
    speed_tokens: int = Field(32, gt=0, description="tokens decoded for tokens/s before and after")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        given = self.model_fields_set
        if "group_size" in given and self.kind != "int4":
            raise UserError(f'group_size is for kind = "int4", and kind is {self.kind!r}: leave it out')
        if self.act_order and self.method != "gptq":
            raise UserError(f'act_order is for method = "gptq", and method is {self.method!r}: leave it out')
        if "calibration" in given and not self.calibrated:
            raise UserError(
                f"calibration is for gptq, awq and smoothquant, and {self.method!r} looks at no text: leave it out"
            )
        if self.qat is not None and self.method != "rtn":
            raise UserError(f'qat trains for method = "rtn", and {self.method!r} would undo that: leave one out')
        if self.method == "smoothquant" and self.kind != "int8-dynamic":
            raise UserError(f'method smoothquant helps INT8 activations: kind = "int8-dynamic", not {self.kind!r}')
        if self.method == "awq" and self.kind == "int8-dynamic":
            raise UserError('method awq is for weights alone: kind = "int8" or "int4", or method = "smoothquant"')
        return self

    @property
    def calibrated(self) -> bool:
        """Whether the method needs text."""
        return self.method != "rtn"
