"""Instruction tuning: supervised fine-tuning on chat examples, the loss on the assistant's tokens only.

The base model's weights, the same training loop and the same rows of packed tokens as pretraining; only the batches
differ: whole conversations, best-fit packed, positions restarting at each, targets masked outside the assistant's
turns. With `replay` some rows of each batch are the pretraining's own text, so that the model doesn't forget it.
Under masked diffusion only the assistants' tokens are ever hidden, and eos follow each conversation (CANVAS).
Examples come from JSON-lines files ({"messages": [{"role", "content"}, …]}) or from `generated://…`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.data.examples import examples
from cluster.stage import Stage, Workspace
from cluster.train.fit import Worker, fit
from cluster.train.pretrain import batch_for, export_model, numbers, progress, run_trainer, targets_ahead
from model.train_config import TrainConfig

CANVAS = 64  # tokens that an answer may leave unused of the length it is given, as far as is trained


class InstructConfig(BaseModel):
    """`[instruct]` of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: tuple[str, ...] = Field(min_length=1, description="chat examples: paths, globs, s3://…, generated://…")
    train: TrainConfig = TrainConfig(steps=200, lr=5e-4, warmup_steps=10, checkpoint_every=100)
    replay: float = Field(0.0, ge=0, lt=1, description="share of a batch's rows from the pretraining text")
    seed: int = 0


def external(config: InstructConfig) -> dict[str, str]:
    return {f"data:{url}": examples.digest(url) for url in config.data}


def run_instruct(ws: Workspace) -> dict:
    """Fine-tune the input model. Writes a model artifact."""
    config: InstructConfig = ws.config
    result = fit(
        ws,
        instruct_worker,
        {"config": config, "model": ws.inputs["model"], "tokens": ws.inputs["tokens"]},
        progress(ws, config.train.steps),
    )
    return export_model(ws, ws.inputs["model"].path(), result)


def instruct_worker(worker: Worker, payload: dict) -> dict:
    import numpy as np

    from cluster.data.chat_rows import ChatRows
    from cluster.data.rows import RowBatch, TokenRows
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.checkpoint import load_model

    config: InstructConfig = payload["config"]
    folder, model = payload["model"].path(), load_model(payload["model"].path())
    ahead = targets_ahead(config.train)
    tail = 0 if model.config.causal else CANVAS
    chats = examples.read_chat(config.data)
    rows = ChatRows(chats, Tokenizer(folder), config.train.seq_len, config.seed, ahead, tail)

    replayed = round(config.replay * config.train.batch_size)
    fresh = config.train.batch_size - replayed
    text = TokenRows(payload["tokens"].path(), config.train.seq_len, config.seed, ahead=ahead)

    def batches(step: int) -> Any:
        first = step * config.train.batch_size
        parts, samples = [rows.batch(step, fresh, worker.rank, worker.world_size)], [*numbers(worker, first, fresh)]
        if replayed:
            parts.append(text.batch(step, replayed, worker.rank, worker.world_size))
            samples += numbers(worker, first + fresh, replayed)
        arrays = RowBatch(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        return batch_for(config.train, model.config, arrays, samples, config.seed)

    summary = run_trainer(worker, model, batches, config.train)
    counts = {"examples": rows.examples, "truncated": rows.truncated, "dropped": rows.dropped, "rows": len(rows)}
    return summary | counts


INSTRUCT = Stage(name="instruct", kind="model", version=1, config=InstructConfig, run=run_instruct, external=external)
