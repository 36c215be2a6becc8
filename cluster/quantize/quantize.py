"""Stage `quantize`: a trained model's linears in INT8 or INT4, as a model that is loaded like any other.

    model ─ calibration rows of the line's tokens ─▶ model/quantize ─▶ codes, scales, and how it was done
      └─ bits per byte and tokens/s ──────────── before and after ──────────┘

It runs in the driver's process: block after block, with a look at whether to stop after each linear.
"""

from __future__ import annotations

import math
import shutil
import time
from typing import TYPE_CHECKING, Any

from cluster.errors import Stopped, UserError
from cluster.evaluate.bits import score_decoder
from cluster.evaluate.config import EvaluateConfig
from cluster.quantize.config import QuantizeConfig
from cluster.quantize.summary import QuantizeSummary
from cluster.stage import Stage, Workspace
from cluster.train.export import TOKENIZER_FILES

if TYPE_CHECKING:
    from cluster.store.artifact import Artifact
    from model.decoder import Decoder

LONGEST_ROW = 512
ROUNDS = 3  # of decoding, for tokens/s: the best counts
ROWS_AT_ONCE = 8


def run_quantize(ws: Workspace) -> QuantizeSummary:
    """Writes a model artifact: model.safetensors with codes and scales, config.json, the tokenizer."""
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.checkpoint import WEIGHTS, load_model, save_model
    from model.quantize.calibrate import quantize
    from model.quantize.linear import QuantizedLinear

    config: QuantizeConfig = ws.config
    folder, tokens = ws.inputs["model"].path(), ws.inputs.get("tokens")
    before, model = load_model(folder), load_model(folder)
    if before.quantization is not None:
        raise UserError("the model is quantized already: quantize the one that it was made from.")

    def progress(done: int, total: int) -> None:
        ws.progress(done, total + 2, f"{config.kind} by {config.method}: {done} of {total} linears")
        if ws.stopping():
            raise Stopped(f"{ws.step} stopped after {done} of {total} linears; it begins anew.")

    rows = calibration_rows(tokens, before, config) if config.calibrated and tokens else []
    done = quantize(model, config.kind, config.method, config.group_size, config.keep, rows, config.act_order, progress)
    save_model(model, ws.out)
    for name in TOKENIZER_FILES:
        shutil.copyfile(folder / name, ws.out / name)
    ws.progress(len(done.layers), len(done.layers) + 2, "bits per byte and tokens/s, before and after")
    tokenizer = Tokenizer(folder)
    linears = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    fast_before, fast = tokens_per_second(before, model, config.speed_tokens)
    return QuantizeSummary(
        kind=config.kind,
        method=config.method,
        parameters=sum(p.numel() for p in before.parameters()),
        linears=len(linears),
        in_int8=sum(how != config.kind for how in done.layers.values()),
        linear_parameters=sum(m.in_features * m.out_features for m in linears),
        linear_bytes=sum(_bytes(m) for m in linears),
        bytes=(ws.out / WEIGHTS).stat().st_size,
        bytes_before=(folder / WEIGHTS).stat().st_size,
        bpb_before=bits_per_byte(before, tokenizer, tokens, config),
        bpb=bits_per_byte(model, tokenizer, tokens, config),
        tokens_per_second_before=fast_before,
        tokens_per_second=fast,
    )


def _bytes(linear: Any) -> int:
    """In the file: floats are in bfloat16 there."""
    return sum(b.numel() * (2 if b.is_floating_point() else 1) for b in linear.buffers())


def calibration_rows(tokens: Artifact, model: Decoder, config: QuantizeConfig) -> list[tuple[Any, Any]]:
    """Batches of (tokens, positions), (B, T) each; of a diffusion model's tokens half are hidden."""
    import torch

    from cluster.data.rows import TokenRows

    length = min(model.config.max_seq_len, config.calibration.seq_len or LONGEST_ROW)
    rows = TokenRows(tokens.path(), length, config.seed).batch(0, math.ceil(config.calibration.tokens / length))
    tokens_NT, positions_NT = torch.from_numpy(rows.tokens), torch.from_numpy(rows.positions)
    if not model.config.causal:
        hidden = torch.rand(tokens_NT.shape, generator=torch.Generator().manual_seed(config.seed)) < 0.5
        assert model.config.mask_id is not None
        tokens_NT = tokens_NT.masked_fill(hidden, model.config.mask_id)
    return list(zip(tokens_NT.split(ROWS_AT_ONCE), positions_NT.split(ROWS_AT_ONCE), strict=True))


def bits_per_byte(model: Decoder, tokenizer: Any, tokens: Artifact | None, config: QuantizeConfig) -> float | None:
    """On the held-out text of all sources together, weighed by bytes; None without any."""
    from cluster.data.rows import INDEX
    from model.files import read_json

    if tokens is None:
        return None
    asked = EvaluateConfig.model_validate({"validation_mb": config.validation_mb})
    sources = sorted(read_json(tokens.path() / INDEX)["sources"])
    scores = [s for s in (score_decoder(model, tokenizer, tokens, source, asked) for source in sources) if s]
    total = sum(s["bytes"] for s in scores)
    return sum(s["bpb"] * s["bytes"] for s in scores) / total if total else None


def tokens_per_second(before: Decoder, after: Decoder, count: int) -> tuple[float | None, float | None]:
    """Greedy decoding of one row by each, in turns, the best of a few rounds; None for a diffusion model."""
    if not before.config.causal:
        return None, None
    from model.generate.decoding import GREEDY
    from model.generate.engine import generate

    decoding = GREEDY.read({"max_new_tokens": min(count, before.config.max_seq_len - 1)})
    best = {id(before): math.inf, id(after): math.inf}
    for _ in range(ROUNDS + 1):  # the first packs codes and fills caches, and is never the best
        for model in (before, after):
            begin = time.perf_counter()
            generate(model, [[0]], decoding)
            best[id(model)] = min(best[id(model)], time.perf_counter() - begin)
    return decoding.max_new_tokens / best[id(before)], decoding.max_new_tokens / best[id(after)]


def gist(config: QuantizeConfig) -> str:
    groups = f", groups of {config.group_size}" if config.kind == "int4" else ""
    return f"{config.kind} by {config.method}{groups}"


STAGE = Stage(
    name="quantize",
    kind="model",
    version=1,
    config=QuantizeConfig,
    run=run_quantize,
    summary=QuantizeSummary,
    uses_ray=False,
    gist=gist,
)
