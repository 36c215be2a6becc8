"""Ray Data as the stages use it: ordered, streaming, and honest about errors."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pytest
from ray.data import DataContext

from cluster.data.streaming import stream


def _reader():
    def read(part):
        """`count` tables for part `part`, the earlier parts the slower; a beat is left in a file."""
        for number in range(part["count"]):
            time.sleep(part.get("sleep", 0.0))
            if "beat" in part:
                Path(part["beat"]).write_text(str(number))
            if part.get("fail") == number:
                raise ValueError("what the reader says\nin two lines")
            yield pa.table(
                {"part": [part["part"]] * 3, "number": [number] * 3, "fill": ["x" * part.get("fill", 0)] * 3}
            )

    return read


read = _reader()  # a local function travels to the workers by value: they can't import this module


def test_tables_come_in_the_order_of_the_parts_whichever_is_ready_first(ray_local):
    parts = [{"part": i, "count": 5, "sleep": 0.05 if i == 0 else 0.0} for i in range(8)]
    found = [row for table in stream(parts, read, name="test") for row in table.select(["part", "number"]).to_pylist()]
    assert [(row["part"], row["number"]) for row in found] == [
        (p, n) for p in range(8) for n in range(5) for _ in range(3)
    ]


def test_tables_arrive_while_their_part_is_still_read(ray_local, tmp_path):
    beat = tmp_path / "beat"
    parts = [{"part": 0, "count": 30, "sleep": 0.05, "fill": 3_000_000, "beat": str(beat)}]
    next(stream(parts, read, name="test"))
    assert int(beat.read_text()) < 25


def test_work_ends_when_the_reader_has_enough(ray_local, tmp_path):
    beat = tmp_path / "beat"
    tables = stream([{"part": 0, "count": 600, "sleep": 0.02, "fill": 3_000_000, "beat": str(beat)}], read, name="test")
    next(tables)
    tables.close()
    time.sleep(0.5)
    then = beat.read_text()
    time.sleep(0.5)
    assert beat.read_text() == then


def test_what_a_reader_raises_is_raised_as_it_is(ray_local):
    parts = [{"part": i, "count": 2, "fail": 1 if i == 1 else None} for i in range(3)]
    with pytest.raises(ValueError) as error:
        list(stream(parts, read, name="test"))
    assert str(error.value) == "what the reader says\nin two lines"


def test_no_parts_are_no_tables_and_the_process_keeps_its_settings(ray_local):
    context = DataContext.get_current()
    before = (context.execution_options.preserve_order, context.target_max_block_size, context.enable_progress_bars)
    assert list(stream([], read, name="test")) == []
    list(stream([{"part": 0, "count": 1}], read, name="test"))
    after = (context.execution_options.preserve_order, context.target_max_block_size, context.enable_progress_bars)
    assert after == before
