"""What an evaluation is asked for: `[evaluate]` of a recipe, its tasks, and how texts are decoded in it.

              by default     then                                          then
samples       TEXT           sample_tokens, temperature, seed, unmasking   [evaluate.decoding]
a task        GREEDY         max_new_tokens, [evaluate.unmasking]          its own decoding = {…}; CHAT's temperature
                                                                           where its kind must draw
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, model_serializer, model_validator

from cluster.errors import UserError
from model.generate.decoding import CHAT, GREEDY, OF_UNMASKING, OPTIONS, TEXT, Decoding
from model.generate.kinds import gathered
from model.generate.unmasking import Unmasking

if TYPE_CHECKING:
    _Options = BaseModel
else:  # every option of Decoding; None where the recipe says nothing
    _Options = create_model(
        "_Options",
        __config__=ConfigDict(extra="forbid", frozen=True),
        **{f.name: (f.type | None, Field(None, description=f.metadata["description"])) for f in OPTIONS},
    )


class DecodingTable(_Options):
    """`decoding = {…}`: the options that are to be other than they would be, and those of its kind.

    `{ kind = "beam", n = 4 }` is `{ kind = "beam:n=4" }`.
    """

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, table: Any) -> Any:
        return gathered(table, tuple(cls.model_fields)) if isinstance(table, dict) else table

    @property
    def said(self) -> dict[str, Any]:
        """The options that are given, without the others."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}

    @model_serializer
    def _written(self) -> dict[str, Any]:
        return self.said

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        Decoding(**self.said)
        return self


class TaskConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Literal["choice", "generate"]
    data: str = Field(description="JSON-lines path, glob or s3:// URL, or generated://…")
    limit: int = Field(200, gt=0)
    max_new_tokens: int = Field(64, gt=0)
    decoding: DecodingTable = Field(default_factory=DecodingTable, description="how answers are generated")

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        if self.kind == "choice" and self.decoding.said:
            raise UserError('decoding is for kind = "generate": choices are scored, and nothing is generated')
        _said_once(self, {"max_new_tokens": "max_new_tokens"})
        return self


class EvaluateConfig(BaseModel):
    """`[evaluate]` of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seq_len: int | None = Field(None, gt=1, description="context for bits per byte; default: the model's max_seq_len")
    validation_mb: float = Field(1.0, gt=0, description="held-out text scored per source, at most")
    tasks: tuple[TaskConfig, ...] = ()
    prompts: tuple[str, ...] = Field((), description="completed as they are, for people to read")
    questions: tuple[str, ...] = Field((), description="asked as a user's chat message")
    sample_tokens: int = Field(48, gt=0)
    temperature: float = Field(0.8, ge=0, allow_inf_nan=False)
    bound_samples: int = Field(
        8, ge=2, multiple_of=2, description="of a diffusion model: ways of hiding each text's tokens, for its bound"
    )
    unmasking: Unmasking = Unmasking()  # of a diffusion model's answers and samples
    decoding: DecodingTable = Field(default_factory=DecodingTable, description="how prompts and questions are sampled")
    seed: int = 0

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        _said_once(self, {"max_new_tokens": "sample_tokens", "temperature": "temperature", "seed": "seed"})
        _said_once(self, dict.fromkeys(OF_UNMASKING, "unmasking"))
        return self

    @property
    def sampling(self) -> Decoding:
        """How the samples are drawn."""
        old = {"max_new_tokens": self.sample_tokens, "temperature": self.temperature, "seed": self.seed}
        return replace(TEXT, **old | asdict(self.unmasking) | self.decoding.said)

    def answering(self, task: TaskConfig) -> Decoding:
        """How the answers of a task are generated: where several must be drawn, not greedily."""
        said = task.decoding.said
        draws = method.draws if (method := Decoding(**said).method) else False
        drawn = {"temperature": CHAT.temperature} if draws else {}
        return replace(GREEDY, **{"max_new_tokens": task.max_new_tokens} | asdict(self.unmasking) | drawn | said)


def _said_once(table: TaskConfig | EvaluateConfig, keys: dict[str, str]) -> None:
    """UserError if an option is given both in `decoding` and by the key of the table that means the same."""
    for option, key in keys.items():
        if key in table.model_fields_set and option in table.decoding.said:
            raise UserError(f"decoding.{option} is {key} here, which is given too: give one of them")
