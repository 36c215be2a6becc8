"""The sender's patience with an MLflow that is away, and what it does with a folder that has done its work."""

from itertools import pairwise
from types import SimpleNamespace

import pytest

from cluster.tracking import sender
from cluster.tracking.sender import LONGEST_WAIT, Task, claim


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(sender.time, "monotonic", lambda: now.seconds)
    return now


class Delivery:
    def __init__(self, folder=None):
        self.line = {"uri": "http://away"}
        self.folder, self.pumped, self.reconnected, self.away, self.whole = folder, 0, 0, True, True

    def pump(self):
        self.pumped += 1
        if self.away:
            raise ConnectionError("away")
        return self.whole

    def reconnect(self):
        self.reconnected += 1


def waits(task, clock, hurry=False) -> list[float]:
    """Seconds between the attempts of twelve failures, looked at every tenth of a second."""
    times = []
    while len(times) < 12:
        before = task.delivery.pumped
        task.attempt(hurry)
        if task.delivery.pumped > before:
            times.append(clock.seconds)
        clock.seconds += 0.1
    return [round(b - a, 1) for a, b in pairwise(times)]


def test_an_mlflow_that_is_away_is_tried_ever_less_often(clock):
    task = Task(Delivery())
    found = waits(task, clock)
    assert found == sorted(found)
    assert found[0] <= 1.2
    assert LONGEST_WAIT <= found[-1] <= LONGEST_WAIT + 0.2
    assert task.problem == "away"
    assert task.delivery.reconnected == 12


def test_at_the_end_it_is_tried_every_second(clock):
    assert max(waits(Task(Delivery()), clock, hurry=True)) <= 1.2


def test_one_success_ends_the_waiting(clock):
    task = Task(Delivery())
    waits(task, clock)
    clock.seconds += LONGEST_WAIT
    task.delivery.away = False
    for _ in range(3):
        task.attempt()
    assert (task.problem, task.done, task.delivery.pumped) == (None, True, 15)


@pytest.mark.parametrize("whole", [True, False])
def test_what_another_process_left_is_removed_when_it_is_delivered_and_not_before(tmp_path, whole):
    folder = tmp_path / "left"
    folder.mkdir()
    (folder / "line.json").write_text("{}", encoding="utf-8")
    (folder / "refused.jsonl").write_text("why\n", encoding="utf-8")
    task = Task(Delivery(folder), claim(folder, new=True))
    task.delivery.away, task.delivery.whole = False, whole
    task.attempt()
    task.attempt()
    assert folder.exists() is not whole
    assert (tmp_path / "left-refused.jsonl").exists() is whole
    assert task.delivery.pumped == (1 if whole else 2)


def test_an_own_folder_is_left_to_its_tracker(tmp_path):
    task = Task(Delivery(tmp_path))
    task.delivery.away = False
    task.attempt()
    assert tmp_path.exists()
