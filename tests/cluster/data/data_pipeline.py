"""Helpers of the corpus and filter tests: run a stage into a store of its own, and look at what it made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.data import corpus, filter
from cluster.data.shards import read_documents
from cluster.stage import Step, run_step
from cluster.store import open_store
from cluster.store.artifact import Artifact, Artifacts


def artifacts(folder: Path) -> Artifacts:
    return Artifacts(open_store(folder))


def corpus_step(sources: list[dict[str, Any]], **config: Any) -> Step:
    return Step("corpus", corpus.STAGE, corpus.CorpusConfig(sources=sources, **config), {})  # type: ignore[arg-type]


def run_corpus(store: Path, sources: list[dict[str, Any]], **config: Any) -> Artifact:
    return run_step(corpus_step(sources, **config), artifacts(store)).artifact


def run_filter(store: Path, sources: list[dict[str, Any]], **config: Any) -> Artifact:
    step = Step("filter", filter.STAGE, filter.FilterConfig(**config), {"corpus": corpus_step(sources)})
    return run_step(step, artifacts(store)).artifact


def rows(artifact: Artifact) -> list[dict[str, Any]]:
    return [row for table in read_documents(artifact.path()) for row in table.to_pylist()]


def ids(artifact: Artifact) -> list[str]:
    return [row["id"] for row in rows(artifact)]


def quarantine(artifact: Artifact) -> list[tuple[str, str, str]]:
    lines = (artifact.path() / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["source"], row["where"], row["reason"]) for row in map(json.loads, lines)]


def content(artifact: Artifact) -> dict[str, str]:
    """Each file's checksum, but for the events, which carry times."""
    return {name: entry.sha256 for name, entry in artifact.manifest.files.items() if name != "events.jsonl"}
