"""The kill matrix's page: which of the screen's lines is a cell's sentence, and which cells are wrong."""

from __future__ import annotations

import pytest

from tests.kill_cell import Cell, sentence
from tests.kill_page import STAGES, is_wrong, page
from tests.kill_sweep import SIGNALS

WORK = "✓ corpus  3.2 s  122 documents\npretrain  1/40 (2%)  loss 6.4\n"
LAST = "\nThe run's process has ended without a word: it was killed.\nWhat is done is kept; the same command resumes:\n"
LOST = "pretrain: a training worker was lost (rank 0). The workers are restarted, and go on from its start.\n"
AGAIN = "✗ pack  Ray's raylet on this machine, process 7, was ended by SIGKILL. It is tried again.\n"
STOPPED = "Stopped. pretrain: pretrain stopped at step 2, with a checkpoint.\nTo resume from there, the same command:\n"
PREFECT = "Prefect's embedded API has not been shown all of this run (its process has ended): 1 line of the log.\n"
ERROR = "Error: EndpointConnectionError: Could not connect to the endpoint URL\nThe details are in x.log\n"


@pytest.mark.parametrize(
    ("screen", "code", "begins"),
    [
        (WORK + LAST, -9, "The run's process has ended without a word"),
        (WORK + AGAIN + LAST, 1, "The run's process has ended without a word"),
        (WORK + LOST + WORK, 0, "pretrain: a training worker was lost (rank 0)"),
        (WORK + AGAIN + WORK, 0, "✗ pack Ray's raylet on this machine, process 7, was ended by SIGKILL"),
        (WORK + STOPPED, 143, "Stopped. pretrain: pretrain stopped at step 2"),
        (WORK + PREFECT, 0, "Prefect's embedded API has not been shown all"),
        (WORK + AGAIN + ERROR, 1, "Error: EndpointConnectionError"),
        (WORK, 0, "It went on to its end, and said nothing of it."),
        (WORK, -9, ""),
        (WORK, 1, ""),
    ],
)
def test_a_cell_s_sentence_is_the_one_that_tells_of_the_death(screen: str, code: int, begins: str) -> None:
    said = sentence(screen, code)
    assert said.startswith(begins) and bool(said) == bool(begins)


def test_a_cell_is_wrong_without_a_sentence_unequal_or_with_what_outlives_it() -> None:
    good = Cell("pack", "gcs", "KILL", "See /tmp/m/runs/gcs-KILL-pack/logs/a.log.", 0, 3.0, True)
    absent = Cell("release", "rank", "KILL", "Nothing: there is none.")
    wrong = [
        Cell("pack", "gcs", "TERM", "", 0, 3.0, True),
        Cell("pack", "gcs", "STOP", "It went on.", 0, 3.0, False, ["pack/tokens.bin"]),
        Cell("pack", "rank", "KILL", "It went on.", 0, 3.0, True, left=["raylet 7"]),
    ]
    assert not is_wrong(good) and not is_wrong(absent) and all(map(is_wrong, wrong))
    shown = page({(c.stage, c.victim, c.signal): c for c in [good, absent, *wrong]}, 2, "2026-11-27")
    assert f"5 of {len(STAGES) * 7 * len(SIGNALS)} cells: 4 tried, 1 without such a process, **3 wrong**" in shown
    assert "| pack | ? / ? / ? | **3 wrong** / ? / ? | ? / ? / ? | 3 / **3 wrong** / **3 wrong** |" in shown
    assert "See …/logs/a.log." in shown, "a place of the machine that the matrix ran on"
    assert "**nothing**" in shown and "**no**: pack/tokens.bin" in shown and "**left behind**: raylet 7" in shown
