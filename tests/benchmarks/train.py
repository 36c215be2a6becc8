"""Tokens/s inside Ray Train workers against the same model in a bare torch loop, on the same number of processes.

    python -m tests.benchmarks.train [--workers 2] [--rounds 5] [--steps 30]

The bare loop is what one would write by hand: DistributedDataParallel over gloo, AdamW, gradient clipping, batches
ready in memory, no tracking, no checkpoints, no rows read from disk. The platform's side is the whole pretrain stage
with all of these. The two take turns, because machines are noisy; the rate of each is that of the median step over all
rounds, without each round's first fifth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from cluster.data import corpus, pack
from cluster.data.readers.sources import Source
from cluster.data.rows import TokenRows
from cluster.data.tokenizer import training as tokenizer
from cluster.session import ClusterConfig, Session
from cluster.stage import Step, Surroundings, run_step
from cluster.store.artifact import Artifact, Artifacts
from cluster.train import pretrain
from cluster.train.worker import EVENTS
from model.config import ModelConfig
from model.decoder import Decoder
from model.objectives.next_token import Batch, next_token
from model.train_config import TrainConfig

MODEL = ModelConfig(d_model=192, n_layers=4, n_heads=6, max_seq_len=256, qk_norm=True)


class MeanLoss(nn.Module):
    """The model with its loss inside forward, so that DistributedDataParallel sees the whole graph."""

    def __init__(self, model: Decoder):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> torch.Tensor:
        loss, count, _ = next_token(self.model, batch)
        return loss / count


def bare_loop(rank: int, world: int, folder: str, vocab: int, config: TrainConfig, threads: int, out: str) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=world)
    rows = TokenRows(folder, config.seq_len)
    batches = [rows.batch(step, config.batch_size, rank, world) for step in range(8)]
    ready = [Batch(*(torch.from_numpy(a) for a in b)) for b in batches]
    model = Decoder(ModelConfig(**{**MODEL.__dict__, "vocab_size": vocab}))
    model.init_weights(0)
    parallel = nn.parallel.DistributedDataParallel(MeanLoss(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    micro = max(1, 4096 // config.seq_len)
    seconds = []
    for step in range(config.steps):
        begin = time.perf_counter()
        batch = ready[step % len(ready)]
        parts = [Batch(*(t[i : i + micro] for t in batch)) for i in range(0, len(batch[0]), micro)]
        for part in parts[:-1]:
            with parallel.no_sync():
                (parallel(part) / len(parts)).backward()
        (parallel(parts[-1]) / len(parts)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
    if rank == 0:
        np.save(f"{out}/seconds.npy", seconds[config.steps // 5 :])
    dist.barrier()
    dist.destroy_process_group()


def bare_seconds(tokens: Artifact, vocab: int, config: TrainConfig, workers: int, threads: int) -> list[float]:
    with tempfile.TemporaryDirectory() as out:
        args = (workers, str(tokens.path()), vocab, config, threads, out)
        torch.multiprocessing.spawn(bare_loop, args=args, nprocs=workers, join=True)
        return np.load(f"{out}/seconds.npy").tolist()


def platform_seconds(trained: Artifact, tokens_per_step: int) -> list[float]:
    """Each step's seconds, off the curve that the stage recorded."""
    events = [json.loads(line) for line in (trained.path() / EVENTS).read_text(encoding="utf-8").splitlines()]
    rates = [e["values"]["tokens_per_second"] for e in events if e["type"] == "metrics" and "loss" in e["values"]]
    return [tokens_per_step / rate for rate in rates[len(rates) // 5 :]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    config = TrainConfig(steps=args.steps, batch_size=16, seq_len=256, lr=1e-3, warmup_steps=5)
    session = Session(ClusterConfig(workers=args.workers))
    session.ensure()
    platform, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        artifacts = Artifacts(folder)
        source = Source(name="prose", path="installed://prose?max_mb=4")
        texts = Step("corpus", corpus.STAGE, corpus.CorpusConfig(sources=(source,)), {})
        pieces = Step("tokenizer", tokenizer.STAGE, tokenizer.TokenizerConfig(vocab_size=4096), {"documents": texts})
        packed = Step("pack", pack.STAGE, pack.PackConfig(), {"documents": texts, "tokenizer": pieces})
        around = Surroundings(session)
        tokens = run_step(packed, artifacts, around).artifact
        vocab = run_step(pieces, artifacts, around).artifact.summary["vocab_size"]
        threads = max(1, int(session.workers()[2]))
        size = config.batch_size * config.seq_len
        for round_ in range(args.rounds):
            bare += bare_seconds(tokens, vocab, config, args.workers, threads)
            stage = pretrain.PretrainConfig(model=MODEL, train=config, seed=round_)
            step = Step("pretrain", pretrain.STAGE, stage, {"tokens": packed, "tokenizer": pieces})
            platform += platform_seconds(run_step(step, artifacts, around).artifact, size)
            rates = [size / statistics.median(seconds) for seconds in (platform, bare)]
            print("after round {}: Ray Train {:,.0f} tok/s, bare {:,.0f} tok/s".format(round_, *rates), flush=True)
    session.close()
    ratio = statistics.median(bare) / statistics.median(platform)
    print(f"{args.workers} workers x {threads} threads: Ray Train / bare torch = {ratio:.3f} (goal: at least 0.95)")


if __name__ == "__main__":
    main()
