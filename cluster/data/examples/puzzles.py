"""Problems with written-out solutions, short enough that a model of a million parameters learns them in a minute.

    arithmetic   What is 37 + 48?        7+8=15, 3+4+1=8. The answer is 85.     from the units, with the carry
                 What is 63 - 48?        3-8+10=5, 6-4-1=1. The answer is 15.   with what is borrowed
    parity       Is the number of ones in 10110 odd or even?   11011. The answer is odd.  running parities
    sort         Sort the digits of 5302.       The answer is 0235.
    reverse      Reverse the digits of 5302.    The answer is 2035.

Digits are single tokens (tokenizer.split_digits), and a step reads one digit of each number: the form in which small
transformers learn addition (Lee et al. 2023, 2307.03381). With cot < 1 the other examples show the bare answer, which
the model can hardly compute in one step: fine-tuning on them gives a mixture of both, and reinforcement finds that the
written-out steps pay (Tsilivis et al. 2025, 2510.11495).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One problem, from which every form of example is made (generated.py).

    Args:
        key: problems with one key are on one side of the train/held-out split.
        worked: the assistant's turn that solves it.
        wrong: other answers, plausible and different.
        prompt: for a plain language model, where it isn't the question; choices then continue it as they are.
    """

    key: str
    question: str
    worked: str
    answer: str
    wrong: tuple[str, ...]
    verifier: str = "answer"
    prompt: str | None = None


def final(answer: str) -> str:
    return f"The answer is {answer}."


@dataclass(frozen=True)
class Arithmetic:
    """Args: digits of both numbers; ops: add, sub; cot: share of the examples with steps."""

    digits: int = 2
    ops: str = "add"
    cot: float = 1.0

    def __post_init__(self) -> None:
        bounded("digits", self.digits, 1, 12)
        bounded("cot", self.cot, 0, 1)
        unknown = set(self.ops.split(",")) - {"add", "sub"}
        if unknown:
            raise UserError(f"ops may have add and sub, not {', '.join(sorted(unknown))}")

    def problem(self, rng: random.Random) -> Problem:
        op = rng.choice(sorted(set(self.ops.split(","))))
        low, high = (10 ** (self.digits - 1) if self.digits > 1 else 0), 10**self.digits
        # Both have all digits: a digit is then found at a fixed distance, which a model learns first.
        a, b = rng.randrange(low, high), rng.randrange(low, high)
        if op == "sub":
            a, b = max(a, b), min(a, b)
        sign, value = ("+", a + b) if op == "add" else ("-", a - b)
        steps = (addition if op == "add" else subtraction)(a, b)
        worked = final(str(value))
        if rng.random() < self.cot:
            worked = f"{', '.join(steps)}. {worked}"
        near = {value + d for d in (-10, -2, -1, 1, 2, 10, 11, 20)} | {value + 10 ** (self.digits - 1)}
        wrong = tuple(str(v) for v in rng.sample(sorted(near - {value}), 3))
        key = f"{max(a, b)}{sign}{min(a, b)}"  # a sum and its mirror image are one problem
        return Problem(key, f"What is {a} {sign} {b}?", worked, str(value), wrong, "number")


def addition(a: int, b: int) -> list[str]:
    """ "7+8=15", "3+4+1=8": a column a step, from the units, the carry as a third summand."""
    steps, carry = [], 0
    x, y = str(a)[::-1], str(b)[::-1]
    for i in range(max(len(x), len(y))):
        terms = [*([x[i]] if i < len(x) else []), *([y[i]] if i < len(y) else []), *(["1"] if carry else [])]
        total = sum(map(int, terms))
        steps.append(f"{'+'.join(terms)}={total}")
        carry = total // 10
    return steps


def subtraction(a: int, b: int) -> list[str]:
    """ "3-8+10=5", "6-4-1=1" for a >= b: a column a step, from the units."""
    steps, borrow = [], 0
    x, y = str(a)[::-1], str(b)[::-1]
    for i in range(len(x)):
        text, value = x[i], int(x[i])
        for term in [*([int(y[i])] if i < len(y) else []), *([1] if borrow else [])]:
            text, value = f"{text}-{term}", value - term
        borrow = value < 0
        if borrow:
            text, value = f"{text}+10", value + 10
        steps.append(f"{text}={value}")
    return steps


@dataclass(frozen=True)
class Parity:
    """Args: bits in the number; cot: share of the examples that show the chain of running parities."""

    bits: int = 12
    cot: float = 1.0

    def __post_init__(self) -> None:
        bounded("bits", self.bits, 2, 64)
        bounded("cot", self.cot, 0, 1)

    def problem(self, rng: random.Random) -> Problem:
        bits = [rng.randrange(2) for _ in range(self.bits)]
        running = [sum(bits[: i + 1]) % 2 for i in range(self.bits)]
        answer, wrong = ("odd", "even") if running[-1] else ("even", "odd")
        number = "".join(map(str, bits))
        chain = f"{''.join(map(str, running))}. " if rng.random() < self.cot else ""
        question = f"Is the number of ones in {number} odd or even?"
        return Problem(number, question, chain + final(answer), answer, (wrong,))


@dataclass(frozen=True)
class Digits:
    """Args: length, the number of digits; what: sort or reverse."""

    length: int = 6

    def __post_init__(self) -> None:
        bounded("length", self.length, 2, 32)

    def problem(self, rng: random.Random) -> Problem:
        digits = [str(rng.randrange(10)) for _ in range(self.length)]
        given, right = "".join(digits), "".join(self.solve(digits))
        wrong: list[str] = []
        for _ in range(50):
            other = list(right)
            i, j = rng.sample(range(self.length), 2)
            other[i], other[j] = other[j], other[i]
            if "".join(other) == right:
                other[i] = str((int(other[i]) + rng.randrange(1, 10)) % 10)
            if "".join(other) not in (right, *wrong):
                wrong.append("".join(other))
            if len(wrong) == 3:
                break
        question = f"{type(self).__name__} the digits of {given}."
        return Problem(given, question, final(right), right, tuple(wrong))

    def solve(self, digits: list[str]) -> list[str]:
        raise TypeError("take Sort or Reverse")


@dataclass(frozen=True)
class Sort(Digits):
    def solve(self, digits: list[str]) -> list[str]:
        return sorted(digits)


@dataclass(frozen=True)
class Reverse(Digits):
    def solve(self, digits: list[str]) -> list[str]:
        return digits[::-1]


def bounded(name: str, value: Any, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{name} must be from {low} to {high}, not {value}")
