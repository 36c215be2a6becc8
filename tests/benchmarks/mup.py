"""Does the learning rate transfer over width? A coordinate check and a sweep, with muP and without.

    python -m tests.benchmarks.mup [--steps 100] [--widths 64 128 256] [--optimizer adamw]

Coordinate check (Yang et al. 2022, arXiv 2203.03466, appendix D.1): the mean size of what each part of the model puts
out, after 0 to 5 steps, at widths 64 to 512. If it grows with the width the learning rate can't transfer; the slope of
its logarithm over the width's says so in one number, which should not be above 0. Sweep: the held-out loss by learning
rate, at three widths. Text: the source code of Python's standard library as bytes. Depth, head size, batch and steps
are the same everywhere; muP's base is the narrowest width, where both are one model.
"""

from __future__ import annotations

import argparse
import math
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.config import ModelConfig
from model.decoder import Decoder
from model.objectives.next_token import Batch, next_token
from model.train_config import Optimizer, TrainConfig
from model.trainer import train

ROWS, LENGTH, HEAD = 8, 64, 16


def shape(width: int, base: int | None, layers: int = 2) -> ModelConfig:
    return ModelConfig(
        vocab_size=256, d_model=width, n_layers=layers, n_heads=width // HEAD, max_seq_len=LENGTH, mup_base_width=base
    )


def text(megabytes: float = 4) -> Tensor:
    """Bytes of the standard library's files, in the order of their names."""
    data = b""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        data += path.read_bytes()
        if len(data) > megabytes * 2**20:
            break
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def batch(data: Tensor, seed: int, rows: int = ROWS) -> Batch:
    """Random pieces of `data`."""
    start_B = torch.randint(0, len(data) - LENGTH - 1, (rows,), generator=torch.Generator().manual_seed(seed))
    piece_BT = data[start_B[:, None] + torch.arange(LENGTH + 1)]
    return Batch(piece_BT[:, :-1], piece_BT[:, 1:], torch.arange(LENGTH).expand(rows, LENGTH))


def settings(lr: float, steps: int, optimizer: Optimizer, **given) -> TrainConfig:
    fixed = {"batch_size": ROWS, "seq_len": LENGTH, "precision": "fp32", "checkpoint_every": 0}
    return TrainConfig(steps=steps, lr=lr, optimizer=optimizer, **fixed, **given)


@torch.no_grad()
def coordinates(model: Decoder, tokens_BT: Tensor) -> dict[str, float]:
    """Mean |x| of what the embedding, each block and the head put out."""
    sizes: dict[str, float] = {}
    parts = {"embedding": model.embedding} | {f"block {i}": block for i, block in enumerate(model.blocks)}
    hooks = [
        part.register_forward_hook(lambda _m, _i, out, name=name: sizes.__setitem__(name, float(out.abs().mean())))
        for name, part in parts.items()
    ]
    hidden, _ = model(tokens_BT)
    for hook in hooks:
        hook.remove()
    return sizes | {"logits": float(model.logits(hidden).abs().mean())}


def coordinate_check(
    data: Tensor, widths: Sequence[int], base: int | None, lr: float, steps: int = 5, optimizer: Optimizer = "adamw"
) -> list[dict[int, dict[str, float]]]:
    """For each number of steps from 0: {width: coordinates}."""
    found: list[dict[int, dict[str, float]]] = [{} for _ in range(steps + 1)]
    probe = batch(data, 1 << 20).tokens_BT
    for width in widths:
        model = Decoder(shape(width, base)).init_weights(0)
        found[0][width] = coordinates(model, probe)

        def look(report, model=model, width=width) -> None:
            found[report.step][width] = coordinates(model, probe)

        config = settings(lr, steps, optimizer, schedule="constant", warmup_steps=0, weight_decay=0.0)
        train(model, lambda step: batch(data, step), config, on_step=look)
    return found


def slope(values: dict[int, float]) -> float:
    """Of log(value) over log(width), by least squares."""
    x = torch.tensor([math.log(width) for width in values], dtype=torch.float64)
    y = torch.tensor([math.log(value) for value in values.values()], dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())


def held_out_loss(data: Tensor, shape: ModelConfig, lr: float, steps: int, optimizer: Optimizer) -> float:
    """After training on the first nine tenths of `data`, of the last; in nats per byte."""
    cut = len(data) * 9 // 10
    model = Decoder(shape).init_weights(0)
    config = settings(lr, steps, optimizer, schedule="linear", warmup_steps=10)
    train(model, lambda step: batch(data[:cut], step), config)
    with torch.no_grad():
        loss, count, _ = next_token(model, batch(data[cut:], 0, 256))
    return float(loss / count)


def print_check(data: Tensor, widths: Sequence[int], lr: float, optimizer: Optimizer) -> None:
    for base in (None, widths[0]):
        found = coordinate_check(data, widths, base, lr, optimizer=optimizer)
        print(f"\nmean |x| {'with' if base else 'without'} muP, {optimizer}, lr {lr:g}; slope over the width")
        print(f"{'':10} step " + "".join(f"{width:>9}" for width in widths) + "    slope")
        for name in found[0][widths[0]]:
            for step in (0, 1, len(found) - 1):
                values = {width: found[step][width][name] for width in widths}
                row = "".join(f"{value:9.3f}" for value in values.values())
                print(f"{name:10} {step:4} {row} {slope(values):8.2f}")


def print_sweep(data: Tensor, widths: Sequence[int], steps: int, optimizer: Optimizer) -> None:
    rates = [2.0**-k for k in range(11, 4, -1)]
    best: dict[tuple[bool, int], int] = {}
    losses: dict[tuple[bool, int], list[float]] = {}
    print(f"\nheld-out nats per byte after {steps} steps of {ROWS} x {LENGTH} bytes, {optimizer}; * the best")
    print(f"{'muP':>4} {'width':>6} " + "".join(f"{f'2^{int(math.log2(rate))}':>8} " for rate in rates), flush=True)
    for mup in (False, True):
        for width in widths:
            if mup and width == widths[0]:
                found = losses[False, width]  # one and the same model
            else:
                config = shape(width, widths[0] if mup else None)
                found = [held_out_loss(data, config, rate, steps, optimizer) for rate in rates]
            losses[mup, width], best[mup, width] = found, min(range(len(rates)), key=lambda i: found[i])
            row = "".join(f"{loss:8.3f}{'*' if i == best[mup, width] else ' '}" for i, loss in enumerate(found))
            print(f"{'yes' if mup else 'no':>4} {width:>6} {row}", flush=True)
    for mup in (False, True):
        small, wide = best[mup, widths[0]], losses[mup, widths[-1]]
        print(
            f"{'with' if mup else 'without'} muP: width {widths[-1]} at the best rate of width {widths[0]} loses "
            f"{wide[small] - min(wide):.3f} to its own best, {rates[best[mup, widths[-1]]] / rates[small]:g}x that rate"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="of each training of the sweep")
    parser.add_argument("--widths", type=int, nargs="+", default=(64, 128, 256), help="of the sweep, the base first")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = text()
    print_check(data, (64, 128, 256, 512), 2**-6, args.optimizer)
    print_sweep(data, args.widths, args.steps, args.optimizer)


if __name__ == "__main__":
    main()
