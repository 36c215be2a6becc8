"""One rank of a data-parallel run over gloo, for test_trainer.py: importable by a spawned process."""

import json
import time
from pathlib import Path

import torch
import torch.distributed as dist

from model.config import ModelConfig
from model.decoder import Decoder
from model.objectives.next_token import IGNORE
from model.train_config import TrainConfig
from model.trainer import Batch, train

ROWS = 4
ARGUMENTS = {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2} | {
    "ff_pattern": ("dense", "moe"),  # balanced by what is a sum over ranks: the losses are means of micro-batches
    "moe": {"n_experts": 4, "balance": "bias", "bias_rate": 0.01, "z_loss": 0.0},
}


def global_batch(step: int) -> Batch:
    """Rows with very uneven numbers of valid targets, so that a mean of ranks' means would differ."""
    tokens = torch.randint(0, 97, (ROWS, 17), generator=torch.Generator().manual_seed(step))
    targets = tokens[:, 1:].clone()
    targets[: ROWS // 2, 2:] = IGNORE
    return Batch(tokens[:, :-1], targets, torch.arange(16).expand(ROWS, 16))


def run_failing_rank(rank: int, world_size: int, folder: str) -> None:
    """The last rank raises in its third batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)

    def batches(step: int) -> Batch:
        if rank == world_size - 1 and step == 2:
            raise ValueError("the answer is 43")
        return global_batch(step)

    model = Decoder(ModelConfig(**ARGUMENTS)).init_weights(0)
    config = TrainConfig(steps=1_000_000, batch_size=ROWS * world_size, seq_len=16)
    try:
        train(model, batches, config, world_size=world_size)
    except Exception as error:
        said = {"kind": type(error).__name__, "words": str(error), "at": time.time()}
        (Path(folder) / f"rank{rank}.json").write_text(json.dumps(said), encoding="utf-8")
        raise


def run_rank(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    model = Decoder(ModelConfig(**ARGUMENTS)).init_weights(0)
    losses: list[tuple[float, float, dict[str, float]]] = []
    saved: list[int] = []
    half = ROWS // world_size

    def on_step(report) -> bool:
        losses.append((report.loss, report.grad_norm, report.extras))
        return rank == 1 and report.step == 4

    def save(step, write) -> None:
        saved.append(step)
        if rank == 0:
            write(Path(folder) / "checkpoint")

    result = train(
        model,
        lambda step: Batch(*(part[rank * half : (rank + 1) * half] for part in global_batch(step))),
        TrainConfig(
            steps=9, batch_size=ROWS, seq_len=16, lr=1e-2, warmup_steps=2, checkpoint_every=0, precision="fp32"
        ),
        world_size=world_size,
        on_step=on_step,
        save=save,
    )
    values = {"curve": losses, "saved": saved, "step": result.step, "stopped": result.stopped}
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(values), encoding="utf-8")
    dist.destroy_process_group()
