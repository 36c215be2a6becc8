"""Instruction tuning: supervised fine-tuning on chat examples, the loss on the assistant's tokens only.

The base model's weights, the same training loop and the same rows of packed tokens as pretraining; only the batches
differ: whole conversations, best-fit packed, positions restarting at each, targets masked outside the assistant's
turns. Examples come from JSON-lines files ({"messages": [{"role", "content"}, …]}) or from `generated://…`.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from cluster.data import examples
from cluster.fit import Worker, fit
from cluster.stage import Stage, Workspace
from cluster.train import export_model, progress, run_trainer
from model.config import TrainConfig


class InstructConfig(BaseModel):
    """`[instruct]` of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: tuple[str, ...] = Field(min_length=1, description="chat examples: paths, globs, s3://…, generated://…")
    train: TrainConfig = TrainConfig(steps=200, lr=5e-4, warmup_steps=10, checkpoint_every=100)
    seed: int = 0


def external(config: InstructConfig) -> dict[str, str]:
    return {f"data:{url}": examples.digest(url) for url in config.data}


def run_instruct(ws: Workspace) -> dict:
    """Fine-tune the input model. Writes a model artifact."""
    config: InstructConfig = ws.config
    result = fit(
        ws,
        instruct_worker,
        {"config": config, "model": ws.inputs["model"]},
        progress(ws, config.train.steps),
    )
    return export_model(ws, ws.inputs["model"].path(), result)


def instruct_worker(worker: Worker, payload: dict) -> dict:
    import torch

    from cluster.data.chat import ChatRows
    from cluster.data.tokenizer import Tokenizer
    from model.checkpoint import load_model
    from model.trainer import Batch

    config: InstructConfig = payload["config"]
    folder = payload["model"].path()
    rows = ChatRows(examples.read_chat(config.data), Tokenizer(folder), config.train.seq_len, config.seed)

    def batches(step: int) -> Batch:
        arrays = rows.batch(step, config.train.batch_size, worker.rank, worker.world_size)
        return Batch(*(torch.from_numpy(a) for a in arrays))

    summary = run_trainer(worker, load_model(folder), batches, config.train)
    counts = {"examples": rows.examples, "truncated": rows.truncated, "dropped": rows.dropped, "rows": len(rows)}
    return summary | counts


INSTRUCT = Stage(name="instruct", kind="model", version=1, config=InstructConfig, run=run_instruct, external=external)
