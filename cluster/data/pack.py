"""Pack: documents become token files that are mapped into memory, with a held-out part.

One set of files for each source and split.

    train-<source>-00000.bin        <u2 (or <u4 where the vocabulary needs it); documents one after another,
                                    each as bos, its tokens, eos
    train-<source>-00000.docs.npy   int64, (documents + 1): where each document starts, and the end
    train-<source>-00000.bytes.npy  int64, (documents): UTF-8 bytes of each document's text
    validation-<source>-00000.…     the same for the held-out documents
    index.json                      dtype, ids, and the shards of each source and split

A document's bos lets its first token be predicted and its eos its end, so the bits of bos-to-eos code the
text completely. What is held out is decided by cluster/data/split.py, by a hash of each text, after the filter. A text
that is the only one of its source becomes two documents: its beginning is trained on, its end is held out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cluster.data.held_out import text_hash
from cluster.data.rows import FORMAT, INDEX
from cluster.data.shards import RowGroup, documents, row_groups
from cluster.data.split import Split, Wanted, choose, survey_unit
from cluster.data.streaming import ordered, stop_check
from cluster.data.summaries import TokensSummary
from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.errors import UserError
from cluster.stage import Stage, Workspace

if TYPE_CHECKING:
    from cluster.store.artifact import Artifact

SPLITS = ("train", "validation")


class PackConfig(BaseModel):
    """`[pack]` of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    validation_fraction: float = Field(0.02, ge=0, le=0.5, description="documents held out of each source")
    validation_min_kb: float = Field(64.0, ge=0, description="text held out of a source, at least, if it has twice it")
    shard_mb: float = Field(256.0, gt=0, description="size of a token file")

    @property
    def validation(self) -> Wanted:
        return Wanted(self.validation_fraction, self.validation_min_kb)


def run_pack(ws: Workspace) -> TokensSummary:
    """Tokenize all documents on Ray and write them in their order."""
    config: PackConfig = ws.config
    artifact, tokenizer = ws.inputs["documents"], Tokenizer(ws.inputs["tokenizer"].path())
    units = row_groups(artifact.path())
    check = stop_check(ws)
    surveys = []
    for survey in ordered(survey_unit, units, artifact, config.validation, check=check):
        surveys.append(survey)
        ws.progress(0.1 * len(surveys), len(units), "held-out split")
    split = choose(surveys, config.validation)
    sources = sorted({source for survey in surveys for source in survey})
    dtype = token_type(tokenizer)
    writers = {
        (part, source): SplitWriter(ws.out, f"{part}-{name}", dtype, int(config.shard_mb * 1e6))
        for source, name in file_names(sources).items()
        for part in SPLITS
    }
    encoded = ordered(encode_unit, units, artifact, tokenizer, split, check=check)
    for done, parts in enumerate(encoded, start=1):
        for key, part in parts.items():
            writers[key].write(part)
        tokens = sum(w.tokens for w in writers.values())
        ws.progress(0.1 * len(units) + 0.9 * done, len(units), f"{tokens / 1e6:.1f}M tokens")
    splits = {s: {name: writers[name, s].close() for name in SPLITS} for s in sources}
    _check(splits)
    index = {
        "format": FORMAT,
        "dtype": dtype.str,
        "vocab_size": tokenizer.vocab_size,
        "pad_id": tokenizer.pad_id,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "sources": splits,
    }
    (ws.out / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return summarise(splits, [s for s in sorted(split.cut) if splits[s]["validation"]["documents"]])


def _check(splits: dict) -> None:
    """Raises UserError where a source has documents and none of them is left to train on."""
    for source, parts in splits.items():
        if not parts["train"]["documents"] and (held := parts["validation"]["documents"]):
            raise UserError(
                f"Source {source!r} has nothing to train on: its {held:,} documents are all held out, because other "
                "sources hold out the same texts. Leave the source out, or give it texts of its own."
            )


def summarise(splits: dict, cut: Sequence[str] = ()) -> TokensSummary:
    """Counts of each source and split, and of all; `cut` are the sources whose only text was cut in two."""
    counted = ("documents", "tokens", "bytes")
    sources = {s: {split: {k: parts[split][k] for k in counted} for split in SPLITS} for s, parts in splits.items()}
    total = {k: sum(parts["train"][k] for parts in sources.values()) for k in counted}
    held = {f"validation_{k}": sum(parts["validation"][k] for parts in sources.values()) for k in counted}
    return TokensSummary(**total, **held, sources=sources, cut=cut)


@dataclass
class Part:
    """Documents of one source and split: their tokens in one array, and the length and bytes of each."""

    tokens: np.ndarray
    lengths: np.ndarray
    bytes: np.ndarray


def token_type(tokenizer: Tokenizer) -> np.dtype:
    """The smallest type that holds every id, little endian."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def encode_unit(unit: RowGroup, artifact: Artifact, tokenizer: Tokenizer, split: Split) -> dict[tuple[str, str], Part]:
    """One row group's documents as ids, by (split, source), in their order."""
    dtype = token_type(tokenizer)
    ids: dict[tuple[str, str], list[np.ndarray]] = {}
    sizes: dict[tuple[str, str], list[int]] = {}
    for source, text in documents(artifact, unit):
        data = text.encode()
        for key, part in zip(SPLITS, split.parts(data), strict=True):
            if part:
                tokens = tokenizer.encode_document(text if part is data else part.decode())
                ids.setdefault((key, source), []).append(np.array(tokens, dtype=dtype))
                sizes.setdefault((key, source), []).append(len(part))
    return {
        key: Part(
            np.concatenate(arrays),
            np.array([len(a) for a in arrays], dtype=np.int64),
            np.array(sizes[key], dtype=np.int64),
        )
        for key, arrays in ids.items()
    }


def file_names(sources: list[str]) -> dict[str, str]:
    """A file name for each source: its own where that is a plain name, else with what is odd replaced."""
    names: dict[str, str] = {}
    for source in sources:
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", source)[:80] or "_"
        names[source] = f"{name}~{text_hash(source, 'file'):016x}" if name != source else name
    return names


@dataclass
class SplitWriter:
    """Appends documents of one source and split to numbered shards; a document is never cut."""

    folder: Path
    stem: str
    dtype: np.dtype
    shard_bytes: int
    shards: list[dict] = field(default_factory=list)
    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    _lengths: list[np.ndarray] = field(default_factory=list)
    _sizes: list[np.ndarray] = field(default_factory=list)
    _open: int = 0  # tokens in the shard that is being written

    def write(self, part: Part) -> None:
        start = 0
        ends = np.cumsum(part.lengths)
        while start < len(part.lengths):
            before = int(ends[start - 1]) if start else 0
            room = self.shard_bytes // self.dtype.itemsize - self._open
            stop = max(int(np.searchsorted(ends, before + room, side="right")), start + (self._open == 0))
            if stop > start:
                with (self.folder / f"{self.stem}-{len(self.shards):05d}.bin").open("ab") as file:
                    file.write(part.tokens[before : int(ends[stop - 1])].tobytes())
                self._lengths.append(part.lengths[start:stop])
                self._sizes.append(part.bytes[start:stop])
                self._open += int(ends[stop - 1]) - before
            if stop < len(part.lengths):
                self._end()
            start = stop

    def close(self) -> dict:
        """Ends the last shard; returns this split's entry of the index."""
        self._end()
        return {
            "shards": self.shards,
            "tokens": self.tokens,
            "documents": self.documents,
            "bytes": self.bytes,
        }

    def _end(self) -> None:
        if not self._open:
            return
        name = f"{self.stem}-{len(self.shards):05d}"
        lengths, sizes = np.concatenate(self._lengths), np.concatenate(self._sizes)
        np.save(self.folder / f"{name}.docs.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        np.save(self.folder / f"{name}.bytes.npy", sizes.astype(np.int64))
        files = {
            "file": f"{name}.bin",
            "documents_file": f"{name}.docs.npy",
            "bytes_file": f"{name}.bytes.npy",
        }
        counts = {"tokens": self._open, "documents": len(lengths), "bytes": int(sizes.sum())}
        self.shards.append({**files, **counts})
        self.tokens += self._open
        self.documents += len(lengths)
        self.bytes += int(sizes.sum())
        self._lengths, self._sizes, self._open = [], [], 0


STAGE = Stage("pack", "tokens", 2, PackConfig, run_pack, TokensSummary)
