"""The documents that a tokenizer is trained on: of each source a share, chosen by a hash of the text.

A document is in the sample if a hash of its text, salted with the seed, falls below its source's share: the same
documents give the same sample on any number of workers. Of a source with so few documents that none does, the one with
the lowest hash gives its beginning, so that each source is in the sample. The sample stays in Ray's object store, where
the training reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cluster.data.held_out import text_hash, threshold
from cluster.data.shards import RowGroup, documents, row_groups
from cluster.data.streaming import Check, ordered
from cluster.errors import UserError

if TYPE_CHECKING:
    from cluster.store.artifact import Artifact

DOCUMENT_CHARACTERS = 1 << 16  # of one document, so that a giant one doesn't fill the sample
LEAST = 1000  # bytes of a document that is there for its source
_BLANK = "\0 \t\n\r"


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
    lowest: dict[str, int] = {}
    for measured in ordered(measure, units, artifact, seed, check=check):
        for source, (size, low) in measured.items():
            sizes[source] = sizes.get(source, 0) + size
            lowest[source] = min(lowest.get(source, low), low)
    unknown = sorted(set(weights) - set(sizes))
    if unknown:
        raise UserError(f"tokenizer.weights names {unknown}; the documents have {sorted(sizes)}.")
    weighted = {s: weights.get(s, 1.0) for s in sizes}
    if not any(size for s, size in sizes.items() if weighted[s] > 0):
        without = [s for s in sizes if weighted[s] <= 0]
        left = f" beside the sources of weight 0 in tokenizer.weights ({', '.join(sorted(without))})" if without else ""
        raise UserError(
            f"The documents of {', '.join(sorted(set(sizes) - set(without))) or 'no source'} hold no text but white "
            f"space{left}, so there is nothing to train a tokenizer on."
        )
    wanted = shares(sizes, weighted, megabytes * 1e6)
    rates = {source: wanted[source] / sizes[source] if sizes[source] else 0.0 for source in sizes}
    first = {s: (low, int(wanted[s])) for s, low in lowest.items() if wanted[s] and low >= threshold(rates[s])}
    return sorted(sizes), list(ordered(keep, units, artifact, rates, first, seed, check=check, fetch=False))


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


def measure(unit: RowGroup, artifact: Artifact, seed: int) -> dict[str, tuple[int, int]]:
    """(bytes, lowest hash) of each source's documents in a row group, each counted up to the sample's cut."""
    found: dict[str, tuple[int, int]] = {}
    for source, text in documents(artifact, unit):
        size, low = found.get(source, (0, 1 << 64))
        if part := beginning(text):
            size, low = size + len(part.encode()), min(low, text_hash(text, salt(seed)))
        found[source] = size, low
    return found


def keep(
    unit: RowGroup, artifact: Artifact, rates: dict[str, float], first: dict[str, tuple[int, int]], seed: int
) -> list[tuple[str, str]]:
    """The row group's part of the sample, (source, text).

    first: of sources none of whose documents is below the rate, the hash of the one that is taken, and its bytes.
    """
    kept: list[tuple[str, str]] = []
    for source, text in documents(artifact, unit):
        part, hashed = beginning(text), text_hash(text, salt(seed))
        if part and hashed < threshold(rates[source]):
            kept.append((source, part))
        elif part and source in first and hashed == first[source][0]:
            data = part.lstrip().encode()
            kept.append((source, data[: max(first[source][1], LEAST)].decode(errors="ignore")))
    return kept


def beginning(text: str) -> str:
    """What of a document may be in the sample; "" for white space and NULs, which are nothing to learn from."""
    part = text[:DOCUMENT_CHARACTERS]
    if not part.strip(_BLANK) or part.isspace():
        part = text.lstrip(_BLANK).lstrip()[:DOCUMENT_CHARACTERS]
    return part


def salt(seed: int) -> str:
    return f"tokenizer-{seed}"
