"""Verifiers: is a completion right? Plain functions of (task, text), without a model and without running any code.

    task = {"messages": […], "answer": "85", "verifier": "number"}     or {"number": 0.9, "format": 0.1}

A verifier reads only the completion's end, never raises on what a model may write, and gives a value in [0, 1].
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from cluster.errors import UserError, did_you_mean
from cluster.verify import numbers

TAIL = 4000  # characters of a completion that are looked at
_STATED = re.compile(r"\banswer\s*(?:is|:|=)\s*:?", re.IGNORECASE)
_FORMAT = re.compile(r"(?:^|\s)The answer is (?:[^\n.]|\.(?=\S))*[^\s.]\.\s*\Z")


def exact(answer: str, text: str) -> float:
    """The whole completion is the answer; only surrounding white space may differ."""
    return float(text.strip() == answer.strip())


def stated(answer: str, text: str) -> float:
    """What follows the last "answer is" equals the answer, whatever its case, quotes and final point."""
    found = after_answer(text)
    return float(found is not None and plain(found.split("\n")[0]) == plain(answer))


def number(answer: str, text: str) -> float:
    """The first number after the last "answer is", or else the text's last number, has the answer's value."""
    found, expected = after_answer(text), numbers.number(answer)
    given = list(numbers.numbers(text if found is None else found))
    return float(bool(given) and expected is not None and bool(given[-1 if found is None else 0] == expected))


def form(answer: str, text: str) -> float:
    """The completion ends with one "The answer is …." and says it once; whether it is right doesn't matter."""
    own = bool(answer.strip()) and text.rstrip().endswith(_sentence(answer))  # it may hold a point, as "St. Louis" does
    return float((own or bool(_FORMAT.search(text))) and len(_STATED.findall(text)) == 1)


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
    weights = weights_of(task)
    answer, text = str(task["answer"]), str(completion)[-TAIL:]
    total = sum(weights.values())
    return min(1.0, max(0.0, sum(w * VERIFIERS[name](answer, text) for name, w in weights.items()) / total))


def check_task(task: Mapping[str, Any]) -> None:
    """Raises ValueError for a task that can't be verified, or whose own answer isn't rewarded in full."""
    weights, answer = weights_of(task), str(task["answer"])
    if max(verify(task, text) for text in (answer, _sentence(answer))) > 1 - 1e-9:
        return
    if weights.get("number") and numbers.number(answer) is None:
        why = (
            f"is no number that can be read, of at most {numbers.DIGITS} digits. Write the number alone, as 5, 1/2, "
            "50%, $5, 1,234.5 or 1e-3,"
        )
    elif weights.keys() & {"answer", "format"}:
        why = "doesn't fit. Write an answer that can stand in one line, 'The answer is ….',"
    else:
        why = f"has more than the {TAIL} characters of a completion that are looked at. Write a shorter one,"
    verifier = task.get("verifier", "exact")
    raise UserError(
        f"The answer itself would not be rewarded: for the verifier {verifier!r}, {answer[:80]!r} {why} or name "
        "another verifier."
    )


def weights_of(task: Mapping[str, Any]) -> dict[str, float]:
    """The task's verifiers with their weights. Raises ValueError if there is no answer or a wrong verifier."""
    answer, chosen = task.get("answer"), task.get("verifier", "exact")
    if not isinstance(answer, str | int | float) or isinstance(answer, bool):
        raise UserError(f'A verifiable task needs an "answer", a string or a number: {str(dict(task))[:200]}')
    if not isinstance(chosen, str | Mapping):
        raise UserError(
            f'"verifier" must be a name ({", ".join(VERIFIERS)}) or {{"name": weight, …}}, not {str(chosen)[:80]}; '
            "without it, it is exact."
        )
    weights = {chosen: 1.0} if isinstance(chosen, str) else dict(chosen)
    for name, weight in weights.items():
        if name not in VERIFIERS:
            near = did_you_mean(str(name), VERIFIERS)
            raise UserError(f"There is no verifier {name!r}; there are {', '.join(VERIFIERS)}.{near}")
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not math.isfinite(weight) or weight < 0:
            raise UserError(f"The weight of the verifier {name!r} must be a number of 0 or more, not {weight!r:.80}.")
    if not sum(weights.values()) > 0:
        raise UserError(f"A task's verifiers need weights of 0 or more, one above 0; not {weights}.")
    return weights


def after_answer(text: str) -> str | None:
    ends = [match.end() for match in _STATED.finditer(text)]
    return text[ends[-1] :] if ends else None


def _sentence(answer: str) -> str:
    return f"The answer is {answer.strip().removesuffix('.')}."


def plain(text: str) -> str:
    return text.strip().rstrip(".").strip().strip("`'\"").casefold()
