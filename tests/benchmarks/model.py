"""What the model's parts cost on this machine, each as a ratio within one run.

    python -m tests.benchmarks.model [--rounds 7] [--only step mixers memory moe]

    step     a training step against transformers' Llama and litgpt's, same shape, dtype, batch and optimizer, and as a
             share of this machine's matrix-product rate (goals: 1.3x, 1.3x, 60% in bf16). Ours takes the batch in
             micro-batches, as its trainer does by default; beside it, the batch at once, as theirs do
    mixers   time per token, forward and backward, of rows of 32k over rows of 2k (goal: under 1.2 for windows and
             Mamba-2; dense attention beside them)
    memory   peak memory of a training step without and with activation checkpointing (goal: 2x less), and with the loss
             in chunks against all logits at once
    moe      a training step of eight dropless experts, two for each token, against a dense feed-forward of the same
             active size (goal: under 1.35x)

Peers take turns, step by step; a time is the median step's and a ratio the median of the rounds' ratios. Each part runs
in processes of its own, so that one's memory is not another's. litgpt is compared where it can be imported (`make
bench-model` fetches it).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.train.fit import ALLOCATOR
from model.config import ModelConfig
from model.count import flops_per_token, parameters
from model.decoder import Decoder
from model.mixers import mixer_class
from model.objectives.next_token import Batch, next_token
from model.part_configs import Mamba2Config, MoeConfig
from model.precision import choose
from model.segments import Segments
from model.train_config import TrainConfig
from model.trainer import micro_batches

ROWS, LENGTH = 8, 512
LLAMAS = {
    "the default, 8k pieces": ModelConfig(vocab_size=8192, max_seq_len=LENGTH),
    "width 384, 32k pieces": ModelConfig(32_000, d_model=384, n_layers=6, n_heads=6, d_ff=1024, max_seq_len=LENGTH),
}
PARTS = ("step", "mixers", "memory", "moe")


def turns(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each one's steps, one a round; the first of each is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(over: list[float], under: list[float]) -> float:
    """The median of the rounds' ratios: a machine's speed changes from minute to minute, less so within a round."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def training(model: nn.Module, losses: Sequence[Callable[[], Tensor]], dtype: torch.dtype) -> Callable[[], None]:
    """A whole step: each micro-batch's loss and gradients, then clipping and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> None:
        for loss in losses:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                value = loss()
            value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


def rows(vocab_size: int, rows: int = ROWS, length: int = LENGTH) -> Batch:
    tokens = torch.randint(0, vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.arange(length).expand(rows, length))


def ours(config: ModelConfig, batch: Batch, dtype: torch.dtype, rows: int | None = None) -> Callable[[], None]:
    """rows: of a micro-batch; None: as many as the trainer takes where a recipe doesn't say."""
    model = Decoder(config).init_weights(0).train()
    parts = micro_batches(batch, TrainConfig(batch_size=ROWS, seq_len=LENGTH, micro_batch_size=rows), dtype)
    tokens = batch.targets_BT.numel()
    return training(model, [lambda part=part: next_token(model, part)[0] / tokens for part in parts], dtype)


def transformers_llama(config: ModelConfig, batch: Batch, dtype: torch.dtype) -> Callable[[], None]:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.ff_width,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            max_position_embeddings=config.max_seq_len,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
            use_cache=False,
        )
    ).train()
    assert sum(p.numel() for p in model.parameters()) == parameters(config).total
    shifted = batch.targets_BT
    return training(model, [lambda: model(batch.tokens_BT, shift_labels=shifted, labels=shifted).loss], dtype)


def litgpt_llama(config: ModelConfig, batch: Batch, dtype: torch.dtype) -> Callable[[], None]:
    from litgpt.config import Config  # type: ignore  (fetched by make bench-model)
    from litgpt.model import GPT  # type: ignore
    from litgpt.utils import chunked_cross_entropy  # type: ignore

    model = GPT(
        Config(
            block_size=config.max_seq_len,
            vocab_size=config.vocab_size,
            padded_vocab_size=config.vocab_size,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_embd=config.d_model,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
            intermediate_size=config.ff_width,
        )
    ).train()
    model.lm_head.weight = model.transformer.wte.weight
    assert sum(p.numel() for p in model.parameters()) == parameters(config).total
    return training(model, [lambda: chunked_cross_entropy(model(batch.tokens_BT), batch.targets_BT)], dtype)


def products(size: int, dtype: torch.dtype, number: int = 8) -> tuple[Callable[[], None], float]:
    """(square matrix products, their FLOPs): the machine's rate, in turns with what is a share of it."""
    a = torch.randn(size, size).to(dtype)
    out = torch.empty_like(a)

    def go() -> None:
        for _ in range(number):
            torch.mm(a, a, out=out)

    return go, number * 2.0 * size**3


def step(rounds: int) -> None:
    dtype, why = choose("auto", torch.device("cpu"))
    square, square_flops = products(1024, dtype)
    print(f"{ROWS} rows of {LENGTH}, {why}")
    for shape, config in LLAMAS.items():
        batch, steps = rows(config.vocab_size), {"products": square}
        at_once = partial(ours, rows=ROWS)
        sides = (ours, at_once, transformers_llama, litgpt_llama)
        for name, make in zip(("ours", "ours, at once", "transformers", "litgpt"), sides, strict=True):
            try:
                steps[name] = make(config, batch, dtype)
            except ImportError as error:
                print(f"    {name}: left out ({error})")
        seconds = turns(steps, rounds)
        machine = seconds.pop("products")
        rates = [square_flops / value / 1e9 for value in machine]
        print(f"  {shape}: {parameters(config).total / 1e6:.1f}M parameters, ", end="")
        print(f"matrix products at {statistics.median(rates):.0f} GFLOP/s ({min(rates):.0f} to {max(rates):.0f})")
        flops = flops_per_token(config, LENGTH) * ROWS * LENGTH
        for name, values in seconds.items():
            share = flops / square_flops * ratio(machine, values)
            print(f"    {name}: {statistics.median(values):.3f} s, {share:.0%} of the matrix-product rate", end="")
            ahead = ratio(values, seconds["ours"])
            print("" if name.startswith("ours") else f", ours is {ahead:.2f}x as fast (goal: 1.3)", flush=True)


LONG = {
    "attention": {},
    "window": {"window": 512},
    "mamba2": {"mamba2": Mamba2Config(d_state=64, head_dim=64)},
    "linear_attention": {},
    "h3": {},
    "rg_lru": {},
    "short_conv": {},
}


def mixers(rounds: int) -> None:
    """One layer's mixer at width 256, forward and backward; dense attention at 32k once only, for it is slow."""
    for name, fields in LONG.items():
        config = ModelConfig(vocab_size=64, d_model=256, n_heads=4, max_seq_len=1 << 15, pattern=(name,), **fields)
        mixer = mixer_class(name)(config, 0)
        mixer.init_weights(torch.Generator().manual_seed(0), 0.02, 0.02)

        def go(length: int, batch: int = 1, mixer: Any = mixer) -> Callable[[], None]:
            x = torch.randn(batch, length, 256, requires_grad=True)
            segments = Segments.unbroken(batch, length)
            return lambda: mixer(x, segments)[0].sum().backward()

        # As many tokens in both, so that what is left is the length of a row.
        seconds = turns({"2k": go(1 << 11, 16), "32k": go(1 << 15)}, 1 if name == "attention" else rounds)
        per_token = {length: statistics.median(values) / (1 << 15) * 1e6 for length, values in seconds.items()}
        goal = " (goal: under 1.2)" if name in ("window", "mamba2") else ""
        print(
            f"  {name}: {per_token['2k']:.2f} us a token at 2k, {per_token['32k']:.2f} at 32k: "
            f"{ratio(seconds['32k'], seconds['2k']):.2f}x{goal}"
        )


MEMORY_SHAPE = ModelConfig(vocab_size=32_000, d_model=256, n_layers=8, n_heads=4, max_seq_len=LENGTH)


def peak_memory(kind: str) -> None:
    """Prints by how many bytes one training step raises this process's memory at most."""
    batch = rows(MEMORY_SHAPE.vocab_size, 16)
    model = Decoder(MEMORY_SHAPE).init_weights(0).train()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model.checkpointing = kind if kind in ("none", "selective", "full") else "none"  # type: ignore
    small = Batch(*(part[:1, :32] for part in batch))
    next_token(model, small)[0].backward()  # what is made once: buffers of libraries, RoPE's tables
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if kind == "all logits":
        hidden, _ = model(batch.tokens_BT)
        F.cross_entropy(model.logits(hidden).flatten(0, 1), batch.targets_BT.flatten(), reduction="sum").backward()
    else:
        next_token(model, batch)[0].backward()
    print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024))


def memory(rounds: int) -> None:
    found = {}
    for kind in ("none", "selective", "full", "all logits"):
        command = [sys.executable, "-m", "tests.benchmarks.model", "--peak-memory", kind]
        found[kind] = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
        )
    for kind, peak in found.items():
        print(f"  {kind}: {peak / 1e6:.0f} MB", end="")
        if kind in ("selective", "full"):
            print(f", {found['none'] / peak:.1f}x less than none (goal: 2)", end="")
        print(f", {peak / found['none']:.1f}x chunks" if kind == "all logits" else "")


def moe(rounds: int) -> None:
    dense = ModelConfig(vocab_size=4096, d_model=512, n_layers=4, n_heads=8, d_ff=1536, max_seq_len=LENGTH)
    experts = replace(dense, ff_pattern=("moe",), moe=MoeConfig(n_experts=8, top_k=2, d_ff=768))
    counts = {name: parameters(config) for name, config in (("dense", dense), ("moe", experts))}
    for name, count in counts.items():
        print(f"  {name}: {count.total / 1e6:.1f}M parameters, {count.active / 1e6:.1f}M active")
    batch = rows(dense.vocab_size)
    models = {"dense": Decoder(dense), "moe": Decoder(experts)}
    steps: dict[str, Callable[[], Any]] = {}
    for name, model in models.items():
        model.init_weights(0).train()
        steps[name] = lambda model=model: next_token(model, batch)[0].backward()
    seconds = turns(steps, rounds)
    print(f"  forward and backward: {ratio(seconds['moe'], seconds['dense']):.2f}x the time (goal: under 1.35)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--peak-memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_memory:
        peak_memory(args.peak_memory)
    elif len(args.only) == 1:
        print(f"{args.only[0]}, {torch.get_num_threads()} threads", flush=True)
        {"step": step, "mixers": mixers, "memory": memory, "moe": moe}[args.only[0]](args.rounds)
    else:
        for part in args.only:
            command = [sys.executable, "-m", "tests.benchmarks.model", "--only", part, "--rounds", str(args.rounds)]
            if part == "step":  # the peers' users have glibc's defaults
                print("glibc's own allocator settings:", flush=True)
                subprocess.run(command, check=True)
                print("the allocator settings of the platform's workers, for all three:", flush=True)
            subprocess.run(command, check=True, env={**os.environ, **ALLOCATOR})


if __name__ == "__main__":
    main()
