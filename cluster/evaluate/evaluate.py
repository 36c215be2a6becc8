"""Evaluation: bits per byte on held-out documents, multiple choice, generation with a verifier, samples.

Bits per byte, sum of -log2 p(token) over the UTF-8 bytes of the text, is comparable across tokenizers. Beside the
model's stand two baselines on the very same documents: the unigram model (the training tokens' frequencies, add-one
smoothed) and `gzip -9` of the text. Every part is a Ray task, so parts run side by side and each is small.

Of a diffusion model `bpb` is an upper bound, and `bpb_bound_error` beside it the standard error of its estimate. Such a
model sees how long a text is; so that the bound is one of the text itself, each document's length is paid for, in
Elias's delta code (1975), a law over all lengths.

A task's items come from a JSON-lines file or from `generated://…`:
  choice    {"messages" | "prompt", "choices": [...], "answer": index}: the likeliest continuation per byte is taken
  generate  {"messages" | "prompt", "answer", "verifier"}: greedy completion, scored by the verifier
"""

from __future__ import annotations

import gzip
import json
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.data.examples import examples
from cluster.data.streaming import unwrap
from cluster.evaluate.summary import BOUND_ERROR, EvaluationSummary
from cluster.evaluate.tasks import sample, score_task
from cluster.stage import Stage, Workspace
from model.generate.unmasking import Unmasking


class TaskConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Literal["choice", "generate"]
    data: str = Field(description="JSON-lines path, glob or s3:// URL, or generated://…")
    limit: int = Field(200, gt=0)
    max_new_tokens: int = Field(64, gt=0)


class EvaluateConfig(BaseModel):
    """`[evaluate]` of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seq_len: int | None = Field(None, gt=1, description="context for bits per byte; default: the model's max_seq_len")
    validation_mb: float = Field(1.0, gt=0, description="held-out text scored per source, at most")
    tasks: tuple[TaskConfig, ...] = ()
    prompts: tuple[str, ...] = Field((), description="completed as they are, for people to read")
    questions: tuple[str, ...] = Field((), description="asked as a user's chat message")
    sample_tokens: int = Field(48, gt=0)
    temperature: float = Field(0.8, ge=0)
    bound_samples: int = Field(
        8, ge=2, multiple_of=2, description="of a diffusion model: ways of hiding each text's tokens, for its bound"
    )
    unmasking: Unmasking = Unmasking()  # of a diffusion model's answers and samples
    seed: int = 0


def external(config: EvaluateConfig) -> dict[str, str]:
    return {f"task:{task.name}": examples.digest(task.data) for task in config.tasks}


def run_evaluate(ws: Workspace) -> EvaluationSummary:
    """Writes metrics.json (flat) and samples.json; the summary is the flat metrics."""
    import ray

    config: EvaluateConfig = ws.config
    model, tokens = ws.inputs["model"], ws.inputs["tokens"]
    sources = sorted(json.loads((tokens.path() / "index.json").read_text())["sources"])
    parts: list[tuple[str, Any, tuple]] = [("bpb", score_source, (model, tokens, name, config)) for name in sources]
    parts += [("task", score_task, (model, task, config)) for task in config.tasks]
    parts += [("samples", sample, (model, config))]

    remote = {f: ray.remote(num_cpus=1, max_retries=2)(f) for f in (score_source, score_task, sample)}
    pending = {remote[f].remote(*args): kind for kind, f, args in parts}
    metrics: dict[str, float] = {}
    scores: list[dict] = []
    samples: list[dict] = []
    total = len(pending)
    while pending:
        done, _ = ray.wait(list(pending), timeout=0.5)
        for ref in done:
            kind, result = pending.pop(ref), unwrap(ref)
            if kind == "bpb":
                scores.append(result)
            elif kind == "task":
                metrics |= result
            else:
                samples = result
        ws.progress(total - len(pending), total, "")
    metrics |= summarise(scores)
    (ws.out / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True))
    (ws.out / "samples.json").write_text(json.dumps(samples, indent=1, ensure_ascii=False))
    ws.events.metrics(0, metrics)
    if samples:
        ws.events.table("samples", ["prompt", "completion"], [[s["prompt"], s["completion"]] for s in samples])
    bpb_figure(ws, sorted(scores, key=lambda s: s["source"]))
    return EvaluationSummary(metrics)


def summarise(scores: list[dict]) -> dict[str, float]:
    """Bits per byte of each source and over all bytes, for the model and its two baselines."""
    metrics = {}
    total = sum(s["bytes"] for s in scores)
    for name in ("bpb", "unigram_bpb", "gzip_bpb"):
        for score in scores:
            metrics[f"{name}/{score['source']}"] = score[name]
        if total:
            metrics[name] = sum(s[name] * s["bytes"] for s in scores) / total
    for score in scores:
        if BOUND_ERROR in score:
            metrics[f"{BOUND_ERROR}/{score['source']}"] = score[BOUND_ERROR]
    if total and any(BOUND_ERROR in score for score in scores):
        metrics[BOUND_ERROR] = math.hypot(*(s[BOUND_ERROR] * s["bytes"] for s in scores)) / total
    return metrics


def score_source(model: Any, tokens: Any, source: str, config: EvaluateConfig) -> dict:
    """Bits per byte of one source's held-out documents: the model's, the unigram's, gzip -9's."""
    import numpy as np
    import torch

    from cluster.data.rows import TokenRows
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.checkpoint import load_model
    from model.objectives.masked_diffusion import likelihood_bound
    from model.objectives.next_token import Batch, next_token

    torch.set_num_threads(1)
    decoder = load_model(model.path())
    causal = decoder.config.causal
    tokenizer = Tokenizer(model.path())
    rows = TokenRows(tokens.path(), config.seq_len or decoder.config.max_seq_len, ahead=int(causal))
    counts = rows.unigram_counts(tokenizer.vocab_size).astype(np.float64) + 1.0
    unigram = np.log(counts / counts.sum())
    nats = unigram_nats = variance = 0.0
    n_tokens = n_rows = 0
    limit = int(config.validation_mb * 2**20)
    with torch.no_grad():
        for arrays in rows.validation(source, max_bytes=limit):
            batch = Batch(*(torch.from_numpy(a) for a in arrays))
            if causal:
                nats += float(next_token(decoder, batch)[0])
            else:
                numbers = n_rows + torch.arange(len(arrays.tokens))
                bounds, variances = likelihood_bound(decoder, batch, numbers, config.bound_samples, config.seed)
                nats, variance = nats + float(bounds.sum()), variance + float(variances.sum())
            targets = arrays.targets[arrays.targets >= 0]
            unigram_nats -= float(unigram[targets].sum())
            n_tokens, n_rows = n_tokens + len(targets), n_rows + len(arrays.tokens)
    documents = list(rows.validation_documents(source, max_bytes=limit))
    if not causal:
        nats += math.log(2) * sum(delta_bits(len(ids)) for ids in documents)
    text = b"".join(tokenizer.decode(ids.tolist()).encode() for ids in documents)
    n_bytes = len(text)
    bits = 1 / (math.log(2) * max(n_bytes, 1))
    score = {
        "source": source,
        "bytes": n_bytes,
        "tokens": n_tokens,
        "bpb": nats * bits,
        "unigram_bpb": unigram_nats * bits,
        "gzip_bpb": 8 * len(gzip.compress(text, 9)) / max(n_bytes, 1),
    }
    return score if causal else score | {BOUND_ERROR: math.sqrt(variance) * bits}


def delta_bits(n: int) -> int:
    """Bits of Elias's delta code of n >= 1; 2^-bits sums to 1 over all n."""
    digits = n.bit_length()
    return digits - 1 + 2 * digits.bit_length() - 1


def bpb_figure(ws: Workspace, scores: list[dict]) -> None:
    names = [score["source"] for score in scores]
    own = "model, at most" if any(BOUND_ERROR in score for score in scores) else "model"
    series = [
        {"name": label, "x": names, "y": [score[key] for score in scores]}
        for key, label in (("bpb", own), ("gzip_bpb", "gzip -9"), ("unigram_bpb", "unigram"))
    ]
    spec = {"title": f"{ws.step}: bits per byte, held out", "x_label": "source", "y_label": "bits per byte"}
    ws.events.figure(f"{ws.step}_bits_per_byte", {**spec, "kind": "bar", "series": series})


STAGE = Stage("evaluate", "evaluation", 1, EvaluateConfig, run_evaluate, EvaluationSummary, external=external)
