"""Replayed text beside conversations: the share is exact, and the order that of one run on any ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.align.instruct import InstructConfig
from cluster.data.order import LONGEST_BLOCK, Permutation
from cluster.data.replay import CHAT, TEXT, ReplayedRows, run_block
from cluster.data.rows import RowBatch
from model.train_config import TrainConfig


class Numbered:
    """Rows that hold their kind and their number."""

    def __init__(self, kind: int, **rows: int):
        self.kind, self.rows, self.sources, self.seq_len = kind, rows, tuple(sorted(rows)), 2

    def __len__(self) -> int:
        return sum(self.rows.values())

    def row(self, *place: Any) -> RowBatch:
        number = place[-1] if len(place) == 1 else 100 * self.sources.index(place[0]) + place[1]
        assert place[-1] < (len(self) if len(place) == 1 else self.rows[place[0]])
        return RowBatch(*[np.array([self.kind, number])] * 3)


def rows_of(replay: float, samples: int, chats: int = 7, seed: int = 0, **text: int) -> ReplayedRows:
    texts = Numbered(1, **(text or {"a": 5, "b": 3}))
    return ReplayedRows(Numbered(0, all=chats), texts, replay, samples, seed)  # type: ignore[arg-type]


@given(st.integers(1, 400), st.integers(1, 9), st.floats(0.01, 0.99))
@settings(max_examples=25)
def test_the_share_is_exact_over_the_run(steps: int, size: int, replay: float) -> None:
    total = steps * size
    if min(replay, 1 - replay) * total < 1:
        return
    rows = rows_of(replay, total)
    read = np.concatenate([rows.batch(step, size).tokens[:, 0] for step in range(steps)])
    assert abs(read.sum() - replay * total) < 1 and read.sum() == rows.count(TEXT)
    assert len(read) - read.sum() == rows.count(CHAT)


@pytest.mark.parametrize(("replay", "size", "text"), [(0.2, 2, 1), (0.6, 1, 2), (0.5, 1, 2)])
def test_small_batches_have_both(replay: float, size: int, text: int) -> None:
    steps = {2: 3, 1: 4 if replay == 0.5 else 3}[size]
    assert rows_of(replay, steps * size).count(TEXT) == text


def test_every_row_of_both_is_read_once_before_any_is_read_again() -> None:
    rows = rows_of(0.5, 32, chats=8, a=5, b=3)
    read = np.concatenate([rows.batch(step, 4).tokens for step in range(8)])
    for kind in (0, 1):
        numbers = read[read[:, 0] == kind, 1].tolist()
        assert len(set(numbers[:8])) == len(set(numbers[8:])) == 8
    assert {n // 100 for k, n in read.tolist() if k} == {0, 1}


def test_the_ranks_parts_are_the_batch() -> None:
    rows = rows_of(0.3, 50)
    for world in (2, 3, 7):
        parts = np.concatenate([rows.batch(3, 5, rank, world).tokens for rank in range(world)])
        assert (parts == rows.batch(3, 5).tokens).all()


def test_without_replay_the_order_is_that_of_the_conversations_alone() -> None:
    read = np.concatenate([rows_of(0.0, 21, seed=4).batch(step, 3).tokens for step in range(7)])
    assert read[:, 0].sum() == 0
    assert read[:, 1].tolist() == [int(Permutation(7, (4, "chat", s // 7))(s % 7)) for s in range(21)]


@pytest.mark.parametrize("samples", [1, 1023, LONGEST_BLOCK, LONGEST_BLOCK + 1, 5 * LONGEST_BLOCK - 3])
def test_a_very_long_run_is_of_equal_blocks(samples: int) -> None:
    block = run_block(samples)
    assert block <= LONGEST_BLOCK and 0 <= -samples % block < -(-samples // block)


@pytest.mark.parametrize(("replay", "steps", "few"), [(0.001, 100, "text"), (0.999, 100, "chat")])
def test_a_run_too_short_for_its_share_is_refused_when_it_is_read(replay: float, steps: int, few: str) -> None:
    with pytest.raises(ValidationError, match=f"less than one row of {few}"):
        InstructConfig(data=("a.jsonl",), replay=replay, train=TrainConfig(steps=steps, batch_size=2))
    InstructConfig(data=("a.jsonl",), replay=replay, train=TrainConfig(steps=500, batch_size=2))  # one row


@pytest.mark.parametrize(("samples", "size", "block"), [(27, 3, 9), (28, 4, 10)])  # the last block whole, and not
def test_a_run_of_several_blocks_counts_what_it_reads(
    monkeypatch: pytest.MonkeyPatch, samples: int, size: int, block: int
) -> None:
    monkeypatch.setattr("cluster.data.replay.LONGEST_BLOCK", 10)
    rows = rows_of(0.3, samples)
    read = np.concatenate([rows.batch(step, size).tokens[:, 0] for step in range(samples // size)])
    assert read.sum() == rows.count(TEXT) and rows.order.block == block
    assert len(read) - read.sum() == rows.count(CHAT)
