"""Instruction tuning: supervised fine-tuning on chat examples, the loss on the assistant's tokens only.

The base model's weights, the same training loop and the same rows of packed tokens as pretraining; only the batches
differ: whole conversations, best-fit packed, positions restarting at each, targets masked outside the assistant's
turns. With `replay` that share of the run's rows is the pretraining's own text, so that the model doesn't forget it.
Under masked diffusion only the assistants' tokens are ever hidden, and eos follow each conversation (CANVAS).
Examples come from JSON-lines files ({"messages": [{"role", "content"}, …]}) or from `generated://…`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.align.check import check_instruct
from cluster.data.examples import examples
from cluster.errors import UserError
from cluster.stage import Stage, Workspace
from cluster.store.artifact import Artifact
from cluster.store.source import located
from cluster.train.cost import training_cost
from cluster.train.export import export_model, progress
from cluster.train.fit import fit
from cluster.train.loop import batch_for, numbers, objective_for, run_trainer
from cluster.train.summary import TrainingSummary, gist
from cluster.train.worker import StoppedAt, Worker
from model.objective import OBJECTIVES
from model.train_config import TrainConfig

CANVAS = 64  # tokens that an answer may leave unused of the length it is given, as far as is trained


class InstructConfig(BaseModel):
    """`[instruct]` of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: tuple[str, ...] = Field(min_length=1, description="chat examples: paths, globs, s3://…, generated://…")
    train: TrainConfig = TrainConfig(steps=200, lr=5e-4, warmup_steps=10, checkpoint_every=100)
    replay: float = Field(0.0, ge=0, lt=1, description="share of all rows that are of the pretraining text")
    seed: int = 0

    @model_validator(mode="after")
    def _trains_on_both(self) -> InstructConfig:
        rows = self.train.steps * self.train.batch_size
        if self.replay and min(self.replay, 1 - self.replay) * rows < 1:
            few = "text" if self.replay < 0.5 else "chat"
            raise UserError(
                f"replay = {self.replay} of {rows} rows (train.steps * train.batch_size) is less than one row of "
                f"{few}: train on more rows, or change replay."
            )
        return self


@dataclass(frozen=True)
class InstructSummary(TrainingSummary):
    """How many chat examples there were, were cut, were left out; the rows that they fill; and rows of text read."""

    examples: int = 0
    truncated: int = 0
    dropped: int = 0
    rows: int = 0
    replayed: int = 0

    def words(self) -> str:
        said = [f"{self.replayed:,} rows of replayed text"] if self.replayed else []
        said += [f"{self.truncated} of {self.examples} chats cut at a row's end"] if self.truncated else []
        said += [f"{self.dropped} left out, their answers beyond it"] if self.dropped else []
        return ", ".join(filter(None, [super().words(), *said]))


def external(config: InstructConfig) -> dict[str, str]:
    return {f"data:{url}": examples.digest(url) for url in config.data}


@dataclass(frozen=True)
class Instruction:
    """What a worker is given."""

    config: InstructConfig
    model: Artifact
    tokens: Artifact | None  # None: there is no text to replay


def run_instruct(ws: Workspace) -> InstructSummary:
    """Fine-tune the input model. Writes a model artifact."""
    config: InstructConfig = ws.config
    found = config.model_copy(update={"data": tuple(map(located, config.data))})  # a worker has a folder of its own
    given = Instruction(found, ws.inputs["model"], ws.inputs.get("tokens"))
    result = fit(ws, instruct_worker, given, progress(ws, config.train.steps))
    return export_model(ws, given.model.path(), result, InstructSummary)


def instruct_worker(worker: Worker, given: Instruction) -> dict | StoppedAt:
    from cluster.data.chat_rows import ChatRows
    from cluster.data.replay import TEXT, ReplayedRows
    from cluster.data.rows import TokenRows
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.checkpoint import load_model

    config, folder = given.config, given.model.path()
    model = load_model(folder)
    objective, kind = objective_for(config.train, model.config, config.seed), OBJECTIVES[config.train.objective]
    tail = CANVAS if kind.generates == "unmasking" else 0
    train = config.train
    chats = ChatRows(examples.read_chat(config.data), Tokenizer(folder), train.seq_len, config.seed, kind.ahead, tail)
    text = TokenRows(given.tokens.path(), train.seq_len, config.seed, ahead=kind.ahead) if given.tokens else None
    rows = ReplayedRows(chats, text, config.replay, train.steps * train.batch_size, config.seed)

    def batches(step: int) -> Any:
        arrays = rows.batch(step, train.batch_size, worker.rank, worker.world_size)
        return batch_for(objective, arrays, numbers(worker, step * train.batch_size, train.batch_size))

    summary = run_trainer(worker, model, batches, config.train, objective.loss)
    if isinstance(summary, StoppedAt):
        return summary
    counts = {"examples": chats.examples, "truncated": chats.truncated, "dropped": chats.dropped, "rows": len(chats)}
    return summary | counts | {"replayed": rows.count(TEXT)}


STAGE = Stage(
    name="instruct",
    kind="model",
    version=2,
    config=InstructConfig,
    run=run_instruct,
    summary=InstructSummary,
    external=external,
    cost=training_cost,
    gist=gist,
    check=check_instruct,
)
