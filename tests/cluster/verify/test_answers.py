"""What of a completion is its answer: completions that a verifier finds equally right agree in a vote."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.verify.answers import answer_of
from cluster.verify.verifiers import verify


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("number", "3 + 4 = 7. The answer is 1,000. Or 8?", "1000"),
        ("number", "So 3 and then 50%", "1/2"),
        ("number", "none at all", None),
        ("stated", "The answer is 'Paris'.\nThe capital.", "paris"),
        ("stated", "Paris", None),
        ("text", "  Paris \n", "Paris"),
        ("text", " \n", None),
        ("task", "It is 5", "5"),
        ("task", "The answer is Paris.", "paris"),
        ("task", "Paris", "Paris"),
    ],
)
def test_an_answer_is_read_as_its_verifier_reads_it(kind: str, text: str, answer: str | None) -> None:
    assert answer_of(text, kind) == answer


@pytest.mark.parametrize(
    ("verifier", "right", "other"),
    [
        ("number", ["The answer is 1/2.", "0.5", "2 and 3 make 50%"], "The answer is 2."),
        ("answer", ["The answer is Rome.", "the answer: 'rome'"], "The answer is Roma."),
        ("exact", ["1/2", " 1/2\n"], "0.5"),
        ({"number": 0.9, "format": 0.1}, ["The answer is 0.5.", "1/2"], "1/3"),
    ],
)
def test_what_is_equally_right_agrees(verifier: Any, right: list[str], other: str) -> None:
    task = {"answer": "rome" if verifier == "answer" else "1/2", "verifier": verifier}
    assert all(verify(task, text) >= 0.9 for text in right) and verify(task, other) < 0.5, "the case must be right"
    assert len({answer_of(text, "task", task) for text in right}) == 1
    assert answer_of(other, "task", task) != answer_of(right[0], "task", task)
