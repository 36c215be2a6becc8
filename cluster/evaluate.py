"""Evaluation: bits per byte on held-out documents, multiple choice, generation with a verifier, samples.

Bits per byte, sum of -log2 p(token) over the UTF-8 bytes of the text, is comparable across tokenizers. Beside the
model's stand two baselines on the very same documents: the unigram model (the training tokens' frequencies, add-one
smoothed) and `gzip -9` of the text. Every part is a Ray task, so parts run side by side and each is small.

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

from cluster.stage import Stage, Workspace, digest_source


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
    seed: int = 0


def external(config: EvaluateConfig) -> dict[str, str]:
    return {f"task:{task.name}": digest_source(task.data) for task in config.tasks}


def run_evaluate(ws: Workspace) -> dict:
    """Writes metrics.json (flat) and samples.json; the summary is the flat metrics."""
    import ray

    config: EvaluateConfig = ws.config
    model, tokens = ws.inputs["model"], ws.inputs["tokens"]
    ws.context["session"].ensure()
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
            kind, result = pending.pop(ref), ray.get(ref)
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
    return metrics


def summarise(scores: list[dict]) -> dict[str, float]:
    """Bits per byte of each source and over all bytes, for the model and its two baselines."""
    metrics = {}
    for name in ("bpb", "unigram_bpb", "gzip_bpb"):
        for score in scores:
            metrics[f"{name}/{score['source']}"] = score[name]
        total = sum(s["bytes"] for s in scores)
        if total:
            metrics[name] = sum(s[name] * s["bytes"] for s in scores) / total
    return metrics


def score_source(model: Any, tokens: Any, source: str, config: EvaluateConfig) -> dict:
    """Bits per byte of one source's held-out documents: the model's, the unigram's, gzip -9's."""
    import numpy as np
    import torch

    from cluster.data.rows import TokenRows
    from cluster.data.tokenizer import Tokenizer
    from model.checkpoint import load_model
    from model.generate.engine import token_logprobs

    torch.set_num_threads(1)
    decoder = load_model(model.path())
    tokenizer = Tokenizer(model.path())
    rows = TokenRows(tokens.path(), config.seq_len or decoder.config.max_seq_len)
    counts = rows.unigram_counts(tokenizer.vocab_size).astype(np.float64) + 1.0
    unigram = np.log(counts / counts.sum())
    nats = unigram_nats = 0.0
    n_bytes = n_tokens = 0
    text: list[bytes] = []
    for batch in rows.validation(source, max_bytes=int(config.validation_mb * 2**20)):
        logprobs, valid = token_logprobs(
            decoder, *(torch.from_numpy(a) for a in (batch.tokens, batch.targets, batch.positions))
        )
        nats -= float(logprobs[valid].double().sum())
        targets = batch.targets[batch.targets >= 0]
        unigram_nats -= float(unigram[targets].sum())
        n_tokens += len(targets)
    for document in rows.validation_documents(source, max_bytes=int(config.validation_mb * 2**20)):
        body = tokenizer.decode(document.tolist()).encode()
        n_bytes += len(body)
        text.append(body)
    bits = 1 / (math.log(2) * max(n_bytes, 1))
    return {
        "source": source,
        "bytes": n_bytes,
        "tokens": n_tokens,
        "bpb": nats * bits,
        "unigram_bpb": unigram_nats * bits,
        "gzip_bpb": 8 * len(gzip.compress(b"".join(text), 9)) / max(n_bytes, 1),
    }
