"""Evaluation: bits per byte on held-out documents, multiple choice, generation with a verifier, samples.

Every part is a Ray task, so parts run side by side and each is small.

A task's items come from a JSON-lines file or from `generated://…`:
  choice    {"messages" | "prompt", "choices": [...], "answer": index}: the likeliest continuation per byte is taken
  generate  {"messages" | "prompt", "answer", "verifier"}: greedy completion, scored by the verifier
"""

from __future__ import annotations

import json
from typing import Any

from cluster.data.examples import examples
from cluster.data.rows import INDEX
from cluster.data.streaming import gather, stop_check
from cluster.evaluate.bits import bpb_figure, not_measured, score_source, summarise
from cluster.evaluate.check import check_evaluate
from cluster.evaluate.config import EvaluateConfig
from cluster.evaluate.summary import EvaluationSummary
from cluster.evaluate.tasks import sample, score_task
from cluster.registry.find import model_digest
from cluster.stage import Stage, Workspace
from cluster.store.source import located


def external(config: EvaluateConfig) -> dict[str, str]:
    asked = [config.answering(task) for task in config.tasks] + [config.sampling]
    others = {name for decoding in asked if decoding.method for name in decoding.method.others}
    found = {f"task:{task.name}": examples.digest(task.data) for task in config.tasks}
    return found | {f"model:{name}": model_digest(name) for name in sorted(others)}


def run_evaluate(ws: Workspace) -> EvaluationSummary:
    """Writes metrics.json (flat) and samples.json; the summary is the flat metrics."""
    config: EvaluateConfig = ws.config
    model, tokens = ws.inputs["model"], ws.inputs.get("tokens")
    index = tokens.path() / INDEX if tokens else None
    sources = sorted(json.loads(index.read_text(encoding="utf-8"))["sources"]) if index else []
    parts: list[tuple[str, Any, tuple]] = [("bpb", score_source, (model, tokens, name, config)) for name in sources]
    tasks = [task.model_copy(update={"data": located(task.data)}) for task in config.tasks]
    parts += [("task", score_task, (model, task, config)) for task in tasks]
    parts += [("samples", sample, (model, config))]

    metrics: dict[str, float] = {}
    scores: list[dict] = []
    unscored: list[str] = []  # sources without held-out text
    samples: list[dict] = []
    calls = [(function, arguments) for _, function, arguments in parts]
    for done, (number, result) in enumerate(gather(calls, check=stop_check(ws)), start=1):
        kind = parts[number][0]
        if kind == "bpb" and result is None:
            unscored.append(sources[number])
        elif kind == "bpb":
            scores.append(result)
        elif kind == "task":
            metrics |= result
        else:
            samples = result
        ws.progress(done, len(parts), "")
    metrics |= summarise(scores)
    (ws.out / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True), encoding="utf-8")
    (ws.out / "samples.json").write_text(json.dumps(samples, indent=1, ensure_ascii=False), encoding="utf-8")
    ws.events.metrics(0, metrics)
    if samples:
        ws.events.table("samples", ["prompt", "completion"], [[s["prompt"], s["completion"]] for s in samples])
    if scores:
        bpb_figure(ws, sorted(scores, key=lambda s: s["source"]))
    return EvaluationSummary(metrics, not_measured(sorted(unscored), all_=not scores, text=tokens is not None))


STAGE = Stage(
    name="evaluate",
    kind="evaluation",
    version=2,
    config=EvaluateConfig,
    run=run_evaluate,
    summary=EvaluationSummary,
    external=external,
    check=check_evaluate,
)
