"""Rows: a tokens artifact as batches for training and for held-out scoring, read through memory maps.

    source's tokens   bos a a a eos│bos b b eos│bos c c …      documents, boundaries from .docs.npy
    row r             tokens [r*T, r*T + T)
    targets           the next token, if it is of the same document, else -100
    positions         0, 1, 2, … from the start of each document, and from the start of the row

Each token but a document's first (its bos) is a target exactly once in an epoch. The last row of a source is
filled up with pad, which is a document of its own without targets. The reader's whole state is the number of
the batch. With `ahead=0` a token's target is the token itself, for objectives that hide it (masked diffusion); all
else is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cluster.data.order import Mixture, Permutation, rank_slice
from model.files import check_format, read_json
from model.inside import inside

FORMAT, INDEX = 1, "index.json"  # of a tokens artifact, which pack.py writes
IGNORE = -100


class RowBatch(NamedTuple):
    """int64 arrays of shape (B, T)."""

    tokens: np.ndarray
    targets: np.ndarray  # the token that follows (ahead=0: the token itself), or -100
    positions: np.ndarray  # restart at 0 with each document


class _Source:
    """The shards of one source and split as one sequence of tokens and of documents."""

    def __init__(self, folder: Path, entry: Mapping, dtype: np.dtype):
        shards = entry["shards"]
        self.maps = [np.memmap(inside(folder, s["file"], INDEX), dtype=dtype, mode="r") for s in shards]
        self.first = np.concatenate([[0], np.cumsum([len(m) for m in self.maps])]).astype(np.int64)
        self.offsets = [np.load(inside(folder, s["documents_file"], INDEX), mmap_mode="r") for s in shards]
        self.sizes = [np.load(inside(folder, s["bytes_file"], INDEX), mmap_mode="r") for s in shards]
        self.first_document = np.concatenate([[0], np.cumsum([len(s) for s in self.sizes])]).astype(np.int64)
        self.tokens = int(self.first[-1])
        self.documents = int(self.first_document[-1])

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [start, stop) and, within, where documents start."""
        tokens, starts = [], []
        shard = int(np.searchsorted(self.first, start, side="right")) - 1
        while start < stop:
            base, end = int(self.first[shard]), int(min(self.first[shard + 1], stop))
            tokens.append(np.asarray(self.maps[shard][start - base : end - base], dtype=np.int64))
            offsets = self.offsets[shard]
            low, high = np.searchsorted(offsets, [start - base, end - base])
            starts.append(np.asarray(offsets[low:high]) + base)
            start, shard = end, shard + 1
        return np.concatenate(tokens), np.concatenate(starts)

    def document(self, number: int) -> tuple[np.ndarray, int]:
        """A document's tokens, bos to eos, and the UTF-8 bytes of its text."""
        shard = int(np.searchsorted(self.first_document, number, side="right")) - 1
        local = number - int(self.first_document[shard])
        start, stop = self.offsets[shard][local : local + 2]
        return np.asarray(self.maps[shard][start:stop], dtype=np.int64), int(self.sizes[shard][local])


class TokenRows:
    """A tokens artifact, read in rows.

    Args:
        folder: the artifact's folder.
        seq_len: T, tokens in a row.
        seed: of the order of the samples.
        weights: share of each source in the training batches; None: by size.
        ahead: how far a target is ahead of its token: 1, or 0 for the token itself.
    """

    def __init__(
        self,
        folder: str | Path,
        seq_len: int,
        seed: int = 0,
        weights: Mapping[str, float] | None = None,
        ahead: int = 1,
    ):
        self.folder, self.seq_len, self.seed, self.ahead = Path(folder), seq_len, seed, ahead
        if seq_len < 2:
            raise ValueError(f"seq_len must be 2 or more, not {seq_len}.")
        self.index = read_json(self.folder / INDEX)
        check_format(self.index.get("format"), FORMAT, self.folder / INDEX)
        self.sources = tuple(sorted(self.index["sources"]))
        self.pad_id = int(self.index["pad_id"])
        self._dtype = np.dtype(self.index["dtype"])
        self._open: dict[tuple[str, str], _Source] = {}
        self._weights = dict(weights) if weights is not None else None
        self._order: Mixture | None = None

    def _source(self, split: str, source: str) -> _Source:
        if source not in self.sources:
            raise ValueError(f"There is no source {source!r}; the tokens have {list(self.sources)}.")
        if (split, source) not in self._open:
            entry = self.index["sources"][source][split]
            self._open[split, source] = _Source(self.folder, entry, self._dtype)
        return self._open[split, source]

    @property
    def rows(self) -> dict[str, int]:
        """Training rows of each source in an epoch."""
        return {s: -(-self.index["sources"][s]["train"]["tokens"] // self.seq_len) for s in self.sources}

    @property
    def order(self) -> Mixture:
        """Which row each sample is. Raises ValueError for weights that don't fit the sources."""
        if self._order is None:
            self._order = Mixture(self.rows, self._weights, self.seed)
        return self._order

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> RowBatch:
        """A rank's part of global batch `step`: samples step*batch_size to (step+1)*batch_size.

        The parts of ranks 0 to world_size-1, one after another, are the same batch for every world_size.
        """
        samples = np.arange(step * batch_size, (step + 1) * batch_size)[rank_slice(batch_size, rank, world_size)]
        place = self.order(samples)
        rows = [self.row(self.order.sources[s], int(r)) for s, r in zip(place.source, place.row, strict=True)]
        return stack(rows, self.seq_len)

    def row(self, source: str, number: int, split: str = "train") -> RowBatch:
        """Row `number` of a source; arrays of shape (T,)."""
        data, length = self._source(split, source), self.seq_len
        first = number * length
        stop = min(first + length + self.ahead, data.tokens)  # with the last token's target
        if not 0 <= first < data.tokens:
            raise IndexError(f"{source} has {-(-data.tokens // length)} rows, there is no row {number}.")
        tokens, starts = data.read(first, stop)
        return cut_row(tokens, starts - first, length, self.pad_id, self.ahead)

    def validation(self, source: str, batch_size: int = 8, max_bytes: int | None = None) -> Iterator[RowBatch]:
        """Batches in which each held-out token but bos is a target exactly once.

        A document longer than a row goes on in further ones; short ones share a row. The last batch may be
        smaller.
        """
        windows = (
            window
            for tokens in self.validation_documents(source, max_bytes)
            for window in document_windows(tokens, self.seq_len, self.ahead)
        )
        yield from batches_of(windows, batch_size, self.seq_len, self.pad_id)

    def validation_documents(self, source: str, max_bytes: int | None = None) -> Iterator[np.ndarray]:
        """The documents that `validation` scores, as ids from bos to eos, in an order that is the same for every seed.

        They end with the one whose text reaches `max_bytes` of UTF-8.
        """
        data = self._source("validation", source)
        order = Permutation(data.documents, ("validation", source)) if data.documents else None
        seen = 0
        for number in range(data.documents):
            if max_bytes is not None and seen >= max_bytes:
                return
            assert order is not None
            tokens, size = data.document(int(order(number)))
            seen += size
            yield tokens

    def unigram_counts(self, vocab_size: int | None = None) -> np.ndarray:
        """How often each id is a target in the training tokens of all sources; int64 (vocab_size,)."""
        size = vocab_size or int(self.index["vocab_size"])
        counts = np.zeros(size, dtype=np.int64)
        for source in self.sources:
            for tokens in self._source("train", source).maps:
                for start in range(0, len(tokens), 1 << 22):
                    counts += np.bincount(tokens[start : start + (1 << 22)], minlength=size)[:size]
        counts[self.index["bos_id"]] = 0  # a document's first token is never a target
        return counts


def cut_row(tokens: np.ndarray, starts: np.ndarray, length: int, pad_id: int, ahead: int = 1) -> RowBatch:
    """A row from up to length + ahead tokens and the places in them where documents start."""
    count = min(len(tokens), length)
    row, targets = np.full(length, pad_id, dtype=np.int64), np.full(length, IGNORE, dtype=np.int64)
    row[:count] = tokens[:count]
    targets[: len(tokens) - ahead] = tokens[ahead:]
    targets[starts[starts >= ahead] - ahead] = IGNORE  # a document's first token is no target
    inner = starts[(starts > 0) & (starts < count)]
    boundaries = np.concatenate([inner, [count] if count < length else []]).astype(np.int64)
    begin = np.zeros(length, dtype=np.int64)
    begin[boundaries] = boundaries
    return RowBatch(row, targets, np.arange(length) - np.maximum.accumulate(begin))


def document_windows(tokens: np.ndarray, length: int, ahead: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(tokens, targets) of at most `length` that score each token of a document after its first once."""
    wanted = np.concatenate([[IGNORE], tokens[1:]])
    for start in range(0, max(len(tokens) - ahead, 1), length):
        stop = min(start + length, len(tokens) - ahead)
        if stop + ahead > 1:  # not the first token alone
            yield tokens[start:stop], wanted[start + ahead : stop + ahead]


def batches_of(
    windows: Iterator[tuple[np.ndarray, np.ndarray]], batch_size: int, length: int, pad_id: int
) -> Iterator[RowBatch]:
    """Windows, in their order, as many into a row as fit, rows into batches."""
    rows: list[RowBatch] = []
    pending: list[tuple[np.ndarray, np.ndarray]] = []
    used = 0
    for window in windows:
        if used + len(window[0]) > length:
            rows.append(join(pending, length, pad_id))
            pending, used = [], 0
            if len(rows) == batch_size:
                yield stack(rows, length)
                rows = []
        pending.append(window)
        used += len(window[0])
    if pending:
        rows.append(join(pending, length, pad_id))
    if rows:
        yield stack(rows, length)


def join(parts: list[tuple[np.ndarray, np.ndarray]], length: int, pad_id: int) -> RowBatch:
    """One row of (tokens, targets) pairs, each a document of its own, filled up with pad."""
    row, targets = np.full(length, pad_id, dtype=np.int64), np.full(length, IGNORE, dtype=np.int64)
    positions = np.zeros(length, dtype=np.int64)
    at = 0
    for tokens, wanted in parts:
        size = len(tokens)
        row[at : at + size], targets[at : at + size] = tokens, wanted
        positions[at : at + size] = np.arange(size)
        at += size
    positions[at:] = np.arange(length - at)
    return RowBatch(row, targets, positions)


def stack(rows: list[RowBatch], length: int) -> RowBatch:
    """Rows of shape (T,) as a batch (B, T); B may be 0."""
    if not rows:
        return RowBatch(*(np.zeros((0, length), dtype=np.int64) for _ in range(3)))
    return RowBatch(*(np.stack(column) for column in zip(*rows, strict=True)))
