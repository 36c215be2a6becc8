"""One rank of a training with fewer rows than ranks, over gloo: importable by a spawned process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from alone import Alone, folder_of

from cluster.align.config import RlhfConfig
from cluster.align.instruct import InstructConfig, Instruction, instruct_worker
from cluster.align.rlhf import Alignment, rlhf_worker
from cluster.train.pretrain import PretrainConfig, Pretraining, pretrain_worker
from model.config import ModelConfig
from model.train_config import TrainConfig

TASKS = "generated://arithmetic?n=80&digits=1"
MOE = {"n_experts": 4, "balance": "bias", "bias_rate": 0.01, "z_loss": 0.0}
SHAPE: dict[str, Any] = {"d_model": 32, "n_layers": 1, "n_heads": 2, "max_seq_len": 64}


def train_config(**fields: Any) -> TrainConfig:
    return TrainConfig(
        **{"steps": 4, "batch_size": 1, "seq_len": 48, "warmup_steps": 1, "checkpoint_every": 0} | fields
    )


def run(kind: str, worker: Alone, tokens: Path) -> Any:
    data = folder_of(tokens)
    if kind in ("next_token", "masked_diffusion", "moe"):
        objective = "next_token" if kind == "moe" else kind
        more = {"ff_pattern": ("moe",), "moe": MOE} if kind == "moe" else {}
        shape = ModelConfig(**SHAPE, **more, causal=objective == "next_token")
        config = PretrainConfig(model=shape, train=train_config(objective=objective), seed=1)
        return pretrain_worker(worker, Pretraining(config, data, data))
    model = folder_of(tokens.parent / "model")
    if kind == "replay":
        config = InstructConfig(data=(TASKS,), train=train_config(batch_size=2), replay=0.5)
        return instruct_worker(worker, Instruction(config, model, data))
    rows = train_config(batch_size=1 if kind == "dpo" else 4)
    config = RlhfConfig(
        method=kind, tasks=(TASKS,), preferences=(TASKS,), group_size=4, max_new_tokens=4, heldout_items=2, train=rows
    )  # type: ignore[arg-type]
    return rlhf_worker(worker, Alignment(config, model))


def run_rank(rank: int, world_size: int, tokens: str, out: str, kinds: list[str]) -> None:
    """Write rank 0's curve of each kind."""
    torch.set_num_threads(1)
    for kind in kinds:
        if world_size > 1:
            meeting = f"file://{out}/meeting-{kind}"
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
        folder = Path(out) / f"{kind}-{world_size}"
        folder.mkdir(exist_ok=True)
        worker = Alone(folder, rank, world_size)
        run(kind, worker, Path(tokens))
        if rank == 0:
            (folder / "curve.json").write_text(json.dumps(worker.events), encoding="utf-8")
        if world_size > 1:
            dist.destroy_process_group()
