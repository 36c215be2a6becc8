"""Data work on Ray: ordered, bounded in flight, and honest about errors, stops and lost workers."""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from ray.data import DataContext
from ray.exceptions import RayError

from cluster.data.streaming import gather, ordered, stream, unwrap
from cluster.errors import Stopped, UserError


def tasks():
    """Local functions, which travel to the workers by value: they can't import this module."""

    def read(part):
        """`count` tables for part `part`, each with `fill` bytes; a beat is left in a file."""
        for number in range(part["count"]):
            time.sleep(part.get("sleep", 0.0))
            if "beat" in part:
                fresh = Path(f"{part['beat']}.fresh")  # renamed, so that no reader finds it empty
                fresh.write_text(str(number), encoding="utf-8")
                fresh.replace(part["beat"])
            if part.get("fail") == number:
                while not Path(part["may_fail"]).exists():
                    time.sleep(0.01)
                raise ValueError("what the reader says\nin two lines")
            if part.get("die") == number and not Path(part["grave"]).exists():
                Path(part["grave"]).write_text("", encoding="utf-8")
                time.sleep(0.5)  # the others' turn: they fill up what may lie unread
                os._exit(1)
            fill = ["x" * part.get("fill", 0)]
            yield pa.table({"part": [part["part"]], "number": [number], "fill": fill})

    def double(unit, factor, folder):
        if folder:
            (Path(folder) / str(unit)).write_text("", encoding="utf-8")
        time.sleep(0.05 if unit == 0 else 0.0)
        return unit * factor

    def wrong(unit, error):
        if unit == 1:
            raise error
        return unit

    def long(unit, folder):
        (Path(folder) / str(unit)).touch()
        begun = time.monotonic()
        while time.monotonic() - begun < 300:
            time.sleep(0.01)

    def wait(path):
        begun = time.monotonic()
        while not Path(path).exists():
            if time.monotonic() - begun > 60:
                return "not there"
            time.sleep(0.01)
        return "there"

    return read, double, wrong, long, wait


read, double, wrong, long, wait = tasks()


def places(tables):
    return [tuple(row.values()) for table in tables for row in table.select(["part", "number"]).to_pylist()]


def test_results_come_in_the_order_of_the_units_whichever_is_ready_first(ray_local):
    parts = [{"part": i, "count": 5, "sleep": 0.05 if i == 0 else 0.0} for i in range(8)]
    assert places(stream(read, parts)) == [(p, n) for p in range(8) for n in range(5)]
    assert list(ordered(double, range(20), 3, "")) == [3 * i for i in range(20)]
    assert list(ordered(double, range(20), 3, "", window=1)) == [3 * i for i in range(20)]
    assert list(ordered(double, range(20), 3, "", fetch=True, kill=True)) == [3 * i for i in range(20)]
    assert [unwrap(reference) for reference in ordered(double, range(9), 3, "", fetch=False)] == [*range(0, 27, 3)]
    assert list(stream(read, [])) == list(ordered(double, [], 3, "")) == list(gather([])) == []


def test_results_are_what_the_task_gave_whatever_their_kind_and_size(ray_local):
    def various(unit, shared):
        yield from (unit, None, shared["a"], np.arange(3_000_000), "x" * unit)

    found = list(stream(various, [1, 2], {"a": [b"b"]}))
    assert [type(one) for one in found] == [int, type(None), list, np.ndarray, str] * 2
    assert found[5] == 2 and found[2] == [b"b"] and found[8].sum() == np.arange(3_000_000).sum() and found[9] == "xx"
    [table] = ordered(lambda unit: pa.table({"text": ["x" * 1000] * unit}), [30_000])
    assert table.num_rows == 30_000, "a table that is one result stays one"


def test_results_arrive_while_their_unit_still_runs_and_wait_where_nobody_reads(ray_local, tmp_path):
    beat = tmp_path / "beat"
    tables = stream(read, [{"part": 0, "count": 100, "fill": 3_000_000, "beat": str(beat)}])
    next(tables)
    time.sleep(1.0)
    assert int(beat.read_text(encoding="utf-8")) < 60
    assert len(places(tables)) > 90


@pytest.mark.parametrize("kill", [False, True])
def test_no_more_units_are_in_flight_than_the_window_holds(ray_local, tmp_path, kill):
    def overlap(unit, folder):
        mine = Path(folder) / str(unit)
        mine.write_text("", encoding="utf-8")
        time.sleep(0.05)
        together = len(list(Path(folder).iterdir()))
        mine.unlink()
        return together

    assert set(ordered(overlap, range(10), str(tmp_path), window=1, kill=kill)) == {1}


@pytest.mark.parametrize("check", [None, lambda: None])
def test_work_ends_when_the_reader_has_enough(ray_local, tmp_path, check):
    beat = tmp_path / "beat"
    parts = [{"part": 0, "count": 600, "sleep": 0.02, "fill": 3_000_000, "beat": str(beat)}]
    tables = stream(read, parts, check=check)
    next(tables)
    tables.close()

    def still() -> bool:
        then = beat.read_text(encoding="utf-8")
        time.sleep(0.5)
        return beat.read_text(encoding="utf-8") == then and ray_local.available_resources().get("CPU") == 2

    ends = time.monotonic() + 60
    while not still():
        assert time.monotonic() < ends
    assert int(beat.read_text(encoding="utf-8")) < 599


def test_the_process_keeps_its_settings(ray_local):
    before = DataContext.get_current().copy()
    list(stream(read, [{"part": 0, "count": 1}]))
    assert DataContext.get_current() == before


def gathered(task, units, *shared, check=None):
    return gather([(task, (unit, *shared)) for unit in units], check=check)


def tasks_alone(task, units, *shared, check=None):
    return ordered(task, units, *shared, check=check, kill=True)


RUNS = [ordered, tasks_alone, gathered]


@pytest.mark.parametrize("run", RUNS)
def test_what_a_person_gave_is_said_in_its_own_words_and_all_else_keeps_its_traceback(ray_local, run):
    with pytest.raises(UserError) as mistake:
        list(run(wrong, range(3), UserError("no such file\nin two lines")))
    assert type(mistake.value) is UserError and str(mistake.value) == "no such file\nin two lines"
    assert mistake.value.__cause__ is None and mistake.value.__suppress_context__
    with pytest.raises(ConnectionError) as raised:
        list(run(wrong, range(3), ConnectionResetError(104, "reset")))
    assert type(raised.value) is ConnectionResetError and raised.value.args == (104, "reset")
    trace = "".join(traceback.format_exception(raised.value))
    assert "in wrong" in trace and "retried_map_errors" not in trace and "SystemException" not in trace


def test_a_unit_that_fails_leaves_those_before_it(ray_local, tmp_path):
    """It fails once what is before it has been read: a failure is raised as soon as it is known."""
    found, go = [], tmp_path / "go"
    parts = [{"part": i, "count": 3, "fail": 1 if i == 1 else None, "may_fail": str(go)} for i in range(3)]
    with pytest.raises(ValueError, match="in two lines"):
        for table in stream(read, parts):
            found += places([table])
            if len(found) == 3:
                go.touch()
    assert found[:3] == [(0, 0), (0, 1), (0, 2)] and (1, 1) not in found


@pytest.mark.parametrize("run", RUNS)
def test_a_stop_is_seen_while_results_are_waited_for(ray_local, tmp_path, run):
    """What is waited for takes five minutes; it is stopped at the third look at it."""
    looks = []

    def check():
        if len(list(tmp_path.iterdir())) == 2:  # both are at work
            looks.append(time.monotonic())
        if len(looks) == 3:
            raise Stopped("stopped")

    with pytest.raises(Stopped, match=r"^stopped$") as stop:
        list(run(long, [0, 1], str(tmp_path), check=check))
    assert stop.value.__cause__ is None
    assert list(ordered(double, [0, 1], 3, "")) == [0, 3], "the workers are free again"
    assert time.monotonic() - looks[-1] < 60


def test_a_unit_whose_worker_dies_is_read_again_although_others_wait_for_their_reader(ray_local, tmp_path):
    """The others hold all CPUs and wait; what was read of the first is not read twice."""
    first = {"part": 0, "count": 6, "fill": 3_000_000, "die": 5, "grave": str(tmp_path / "grave")}
    parts = [first, *({"part": i, "count": 9, "fill": 3_000_000} for i in range(1, 5))]
    assert places(stream(read, parts)) == [(p, n) for p in range(5) for n in range(9 if p else 6)]
    assert (tmp_path / "grave").exists()


@pytest.mark.parametrize("run", [ordered, tasks_alone])
def test_a_unit_whose_worker_dies_every_time_is_an_error(ray_local, run):
    def die(unit):
        os._exit(1)

    with pytest.raises(RayError):
        list(run(die, [0]))


def test_gathered_results_come_as_they_are_ready(ray_local, tmp_path):
    """The first call ends only after the second one's result has been given."""
    results = gather([(wait, (str(tmp_path / "go"),)), (double, (2, 5, ""))])
    assert next(results) == (1, 10)
    (tmp_path / "go").write_text("", encoding="utf-8")
    assert list(results) == [(0, "there")]
