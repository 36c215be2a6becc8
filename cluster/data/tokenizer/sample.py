"""The documents that a tokenizer is trained on: of each source a share, chosen by a hash of the text.

A document is in the sample if a hash of its text, salted with the seed, falls below its source's share: the same
documents give the same sample on any number of workers. The sample stays in Ray's object store, where the training
reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cluster.data.held_out import below
from cluster.data.shards import RowGroup, documents, row_groups
from cluster.data.streaming import Check, ordered
from cluster.errors import UserError

if TYPE_CHECKING:
    from cluster.store.artifact import Artifact

DOCUMENT_CHARACTERS = 1 << 16  # of one document, so that a giant one doesn't fill the sample


def sample_documents(
    artifact: Artifact, megabytes: float, weights: Mapping[str, float], seed: int, check: Check
) -> tuple[list[str], list[Any]]:
    """About so many megabytes of the artifact's documents, the sources by weight (1 where not named).

    Returns the sources, and Ray references to lists of (source, text), in the order of the documents.

    Raises:
        Stopped: what `check` raises.
        UserError: there is no text, or a weight names no source.
    """
    units = row_groups(artifact.path())
    sizes: dict[str, int] = {}
    for measured in ordered(measure, units, artifact, check=check):
        for source, size in measured.items():
            sizes[source] = sizes.get(source, 0) + size
    unknown = sorted(set(weights) - set(sizes))
    if unknown:
        raise UserError(f"tokenizer.weights names {unknown}; the documents have {sorted(sizes)}.")
    if not sum(sizes.values()):
        raise UserError("The documents hold no text, so there is nothing to train a tokenizer on.")
    wanted = shares(sizes, {s: weights.get(s, 1.0) for s in sizes}, megabytes * 1e6)
    rates = {source: wanted[source] / sizes[source] if sizes[source] else 0.0 for source in sizes}
    return sorted(sizes), list(ordered(keep, units, artifact, rates, seed, check=check, fetch=False))


def shares(sizes: Mapping[str, int], weights: Mapping[str, float], budget: float) -> dict[str, float]:
    """Water-filling: the budget by weight, no source above its size, what is left over to the others."""
    result = dict.fromkeys(sizes, 0.0)
    open_ = {s for s in sizes if weights[s] > 0 and sizes[s] > 0}
    while open_:
        total = sum(weights[s] for s in open_)
        full = {s for s in open_ if sizes[s] <= budget * weights[s] / total}
        for source in full or open_:
            result[source] = float(sizes[source]) if full else budget * weights[source] / total
        if not full:
            break
        budget -= sum(sizes[s] for s in full)
        open_ -= full
    return result


def measure(unit: RowGroup, artifact: Artifact) -> dict[str, int]:
    """Bytes of each source in a row group, each document counted up to the sample's cut."""
    sizes: dict[str, int] = {}
    for source, text in documents(artifact, unit):
        sizes[source] = sizes.get(source, 0) + len(text[:DOCUMENT_CHARACTERS].encode())
    return sizes


def keep(unit: RowGroup, artifact: Artifact, rates: dict[str, float], seed: int) -> list[tuple[str, str]]:
    """The row group's part of the sample, (source, text)."""
    return [
        (source, text[:DOCUMENT_CHARACTERS])
        for source, text in documents(artifact, unit)
        if below(text, f"tokenizer-{seed}", rates[source])
    ]
