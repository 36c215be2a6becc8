"""Verifiers: is a completion right? Plain functions of (task, text), without a model and without running any code.

    task = {"messages": […], "answer": "85", "verifier": "number"}     or {"number": 0.9, "format": 0.1}

A verifier reads only the completion's end, never raises on what a model may write, and gives a value in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from cluster.errors import UserError, did_you_mean

TAIL = 4000  # characters of a completion that are looked at
DIGITS = 60  # of a number; longer ones are garbage
_STATED = re.compile(r"\banswer\s*(?:is|:|=)\s*:?", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_FORMAT = re.compile(r"(?:^|\s)The answer is [^\n.]*[^\s.](?:\.\d+)?\.\s*\Z")


def exact(answer: str, text: str) -> float:
    """The whole completion is the answer; only surrounding white space may differ."""
    return float(text.strip() == answer.strip())


def stated(answer: str, text: str) -> float:
    """What follows the last "answer is" equals the answer, whatever its case, quotes and final point."""
    found = _after_answer(text)
    return float(found is not None and _plain(found.split("\n")[0]) == _plain(answer))


def number(answer: str, text: str) -> float:
    """The first number after the last "answer is", or else the text's last number, has the answer's value."""
    found = _after_answer(text)
    numbers = _NUMBER.findall(text if found is None else found)
    if not numbers:
        return 0.0
    given = _value(numbers[-1] if found is None else numbers[0])
    return float(given is not None and given == _value(answer))


def form(answer: str, text: str) -> float:
    """The completion ends with one "The answer is …." and says it once; whether it is right doesn't matter."""
    return float(bool(_FORMAT.search(text)) and len(_STATED.findall(text)) == 1)


VERIFIERS: dict[str, Callable[[str, str], float]] = {
    "exact": exact,
    "answer": stated,
    "number": number,
    "format": form,
}


def verify(task: Mapping[str, Any], completion: str) -> float:
    """The reward of a completion, in [0, 1].

    Args:
        task: has "answer", and "verifier": a name, or {name: weight} for their weighted mean.

    Raises:
        ValueError: the task (never the completion) is wrong: no answer, or no such verifier.
    """
    weights = check_task(task)
    answer, text = str(task["answer"]), str(completion)[-TAIL:]
    total = sum(weights.values())
    return min(1.0, max(0.0, sum(w * VERIFIERS[name](answer, text) for name, w in weights.items()) / total))


def check_task(task: Mapping[str, Any]) -> dict[str, float]:
    """The task's verifiers with their weights. Raises ValueError for a task that can't be verified."""
    if not isinstance(task.get("answer"), (str, int, float)):
        raise UserError(f'A verifiable task needs an "answer", a string: {str(dict(task))[:200]}')
    chosen = task.get("verifier", "exact")
    weights = {chosen: 1.0} if isinstance(chosen, str) else dict(chosen)
    for name in weights:
        if name not in VERIFIERS:
            near = did_you_mean(str(name), VERIFIERS)
            raise UserError(f"There is no verifier {name!r}; there are {', '.join(VERIFIERS)}.{near}")
    if not weights or min(weights.values()) < 0 or not sum(weights.values()) > 0:
        raise UserError(f"A task's verifiers need weights of 0 or more, one above 0; not {weights}.")
    return weights


def _after_answer(text: str) -> str | None:
    ends = [match.end() for match in _STATED.finditer(text)]
    return text[ends[-1] :] if ends else None


def _plain(text: str) -> str:
    return text.strip().rstrip(".").strip().strip("`'\"").casefold()


def _value(text: str) -> Decimal | None:
    text = text.strip().replace(",", "").replace("\u2212", "-").rstrip(".")
    if len(text) > DIGITS:
        return None
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
