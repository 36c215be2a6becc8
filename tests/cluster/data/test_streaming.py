"""Data work on Ray: ordered, bounded in flight, and honest about errors, stops and lost workers."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.data.streaming import UNREAD, gather, ordered, stream
from cluster.errors import Stopped, UserError


def tasks():
    """Local functions, which travel to the workers by value: they can't import this module."""

    def read(part):
        """`count` tables for part `part`; a beat is left in a file."""
        for number in range(part["count"]):
            time.sleep(part.get("sleep", 0.0))
            if "beat" in part:
                Path(part["beat"]).write_text(str(number))
            if part.get("fail") == number:
                raise ValueError("what the reader says\nin two lines")
            if part.get("die") == number and not Path(part["grave"]).exists():
                Path(part["grave"]).write_text("")
                time.sleep(0.5)  # the others' turn: they fill up what may lie unread
                os._exit(1)
            yield pa.table({"part": [part["part"]] * 3, "number": [number] * 3})

    def double(unit, factor, folder):
        if folder:
            (Path(folder) / str(unit)).write_text("")
        time.sleep(0.05 if unit == 0 else 0.0)
        return unit * factor

    def wrong(unit, error):
        if unit == 1:
            raise error
        return unit

    def sleep(unit):
        begun = time.monotonic()
        while time.monotonic() - begun < unit:
            time.sleep(0.01)
        return unit

    return read, double, wrong, sleep


read, double, wrong, sleep = tasks()


def places(tables):
    return [tuple(row.values()) for table in tables for row in table.slice(0, 1).to_pylist()]


def test_results_come_in_the_order_of_the_units_whichever_is_ready_first(ray_local):
    parts = [{"part": i, "count": 5, "sleep": 0.05 if i == 0 else 0.0} for i in range(8)]
    assert places(stream(read, parts)) == [(p, n) for p in range(8) for n in range(5)]
    assert list(ordered(double, range(20), 3, "")) == [3 * i for i in range(20)]
    assert list(ordered(double, range(20), 3, "", window=1)) == [3 * i for i in range(20)]
    assert list(stream(read, [])) == list(ordered(double, [], 3, "")) == list(gather([])) == []


def test_results_arrive_while_their_unit_still_runs_and_wait_where_nobody_reads(ray_local, tmp_path):
    beat = tmp_path / "beat"
    tables = stream(read, [{"part": 0, "count": 200, "beat": str(beat)}])
    next(tables)
    time.sleep(1.0)
    assert int(beat.read_text()) <= UNREAD + 2
    assert len(list(tables)) == 199


def test_no_more_units_are_in_flight_than_the_window_holds(ray_local, tmp_path):
    results = ordered(double, range(50), 1, str(tmp_path), window=3)
    next(results)
    time.sleep(1.0)
    assert len(list(tmp_path.iterdir())) <= 4
    assert list(results) == list(range(1, 50))


def test_work_ends_when_the_reader_has_enough(ray_local, tmp_path):
    beat = tmp_path / "beat"
    parts = [{"part": 0, "count": 600, "sleep": 0.02, "beat": str(beat)}]
    tables = stream(read, parts)
    next(tables)
    tables.close()
    time.sleep(0.5)
    then = beat.read_text()
    time.sleep(0.5)
    assert beat.read_text() == then


def gathered(task, units, *shared, check=None):
    return gather([(task, (unit, *shared)) for unit in units], check=check)


@pytest.mark.parametrize("run", [ordered, gathered])
def test_what_a_person_gave_is_said_in_its_own_words_and_all_else_keeps_its_traceback(ray_local, run):
    with pytest.raises(UserError) as told:
        list(run(wrong, range(3), UserError("no such file\nin two lines")))
    assert type(told.value) is UserError and str(told.value) == "no such file\nin two lines"
    assert told.value.__cause__ is None and told.value.__suppress_context__
    with pytest.raises(ConnectionError) as raised:
        list(run(wrong, range(3), ConnectionResetError(104, "reset")))
    assert type(raised.value) is ConnectionResetError and raised.value.errno == 104
    assert "in wrong" in str(raised.value.__cause__)


def test_a_task_that_fails_between_its_results_gives_those_before(ray_local):
    found = []
    with pytest.raises(ValueError, match="in two lines"):
        for table in stream(read, [{"part": i, "count": 3, "fail": 1 if i == 1 else None} for i in range(3)]):
            found += places([table])
    assert found == [(0, 0), (0, 1), (0, 2), (1, 0)]


@pytest.mark.parametrize("run", [ordered, gathered])
def test_a_stop_is_seen_while_results_are_waited_for(ray_local, run):
    begun = time.monotonic()

    def check():
        if time.monotonic() - begun > 0.3:
            raise Stopped("stopped")

    with pytest.raises(Stopped):
        list(run(sleep, [20, 20], check=check))
    assert time.monotonic() - begun < 5
    assert list(ordered(sleep, [0, 0])) == [0, 0], "the workers are free again"


def test_a_unit_whose_worker_dies_is_read_again_although_others_wait_for_their_reader(ray_local, tmp_path):
    """The others hold all CPUs and wait; unless what they have is taken, the first never runs again."""
    first = {"part": 0, "count": 6, "die": 0, "grave": str(tmp_path / "grave")}
    parts = [first, *({"part": i, "count": 9} for i in range(1, 5))]
    assert places(stream(read, parts)) == [(p, n) for p in range(5) for n in range(9 if p else 6)]
    assert (tmp_path / "grave").exists()


def test_gathered_results_come_as_they_are_ready(ray_local):
    assert list(gather([(sleep, (0.6,)), (double, (2, 5, ""))])) == [(1, 10), (0, 0.6)]
