"""What of a completion is its answer, for a vote among completions: the same reading that its verifier has.

number   after the last "answer is", or else the last one, by its value      "… is 1,000." and "1e3" agree
stated   what follows the last "answer is", whatever its case and quotes
text     all of it
task     as the task's verifier reads it; without a task: number if there is one, else stated, else text
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.verify import numbers
from cluster.verify.verifiers import TAIL, after_answer, plain, weights_of

READS = {"exact": "text", "answer": "stated", "number": "number"}  # of each verifier of an answer


def answer_of(text: str, kind: str, task: Mapping[str, Any] | None = None) -> str | None:
    """The answer, in a form that is the same for answers that mean the same; None where there is none."""
    text = text[-TAIL:]
    if kind == "task" and task is not None:
        weights = {name: weight for name, weight in weights_of(task).items() if name in READS and weight}
        kind = READS[max(weights, key=weights.__getitem__)] if weights else "text"
    if kind == "number":
        return _number(text)
    if kind == "stated":
        return _stated(text)
    if kind == "text":
        return text.strip() or None
    return next((found for found in (_number(text), _stated(text), text.strip()) if found), None)


def _number(text: str) -> str | None:
    found = after_answer(text)
    given = list(numbers.numbers(text if found is None else found))
    return str(given[-1 if found is None else 0]) if given else None


def _stated(text: str) -> str | None:
    found = after_answer(text)
    return plain(found.split("\n")[0]) if found is not None and found.strip() else None
