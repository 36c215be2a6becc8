"""Numbers as people write them: what each is worth, which are the same, and what is none."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.verify.numbers import number, numbers

ALIKE = {
    "85": ["85", "85.", " 85 ", "+85", "85.0", "85,0", "x = 85", "８５", "٨٥", r"\boxed{85}", "$85$", "8.5e1", "0085"],
    "-3": ["-3", "\u22123", "\u20133", "- 3", "minus 3", "negative 3", "-3.00", "-6/2", "6/-2", r"-\frac{6}{2}"],
    "1000": [
        *("1,000", "1 000", "1\u00a0000", "1\u202f000", "1\u2009000", "1'000", "1\u2019000", "1_000", "1.000,0"),
        *("1,000.00", "1e3", "1E+3", "10^3", "10**3", "10³", "1 × 10^3", "1·10³", r"1 \times 10^{3}", "1 thousand"),
        *("1{,}000", r"1\,000"),
    ],
    "1000.5": ["1.000,50", "1,000.50", "1 000,5", "1 000.5", "1'000.5", "1000,5", "2001/2", "1000 1/2", "1000½"],
    "1234567": ["1,234,567", "1.234.567", "1 234 567", "12,34,567"],
    "1/2": ["1/2", "1 / 2", "\u00bd", "1\u20442", "2/4", "0.5", ".5", "0,5", "0,500", "50%", "50 %", "50 percent",
            "50 per cent", r"50\%", r"\frac{1}{2}", r"\frac12", r"\dfrac{1}{2}", "5e-1", "2^-1", "5×10⁻¹"],
    "2.5": ["2 1/2", "2\u00bd", "2 \u00bd", r"2\frac{1}{2}", "5/2", "250%", "2,5"],
    "-2.5": ["-2 1/2", "-2\u00bd", "\u22122,5"],
    "5": ["$5", "5$", "5 €", "€5", "£ 5", "US$5", "5,00 €", "$5.00", "¥5"],
    "-5": ["-$5", "$-5", "\u2212€5"],
    "3000000": ["3 million", "$3 million", "3e6", "3,000,000"],
    "1.234": ["1.234", "1234/1000"],
    "√8": ["√8", "2√2", r"\sqrt{8}", r"2\sqrt{2}", "2·√2", "4√2/2"],
    "3": ["√9", "3"],
    "π/2": ["π/2", r"\frac{\pi}{2}", "0.5π", r"\pi / 2"],
}  # fmt: skip
CASES = [(text, name) for name, texts in ALIKE.items() for text in texts]


@pytest.mark.parametrize(("text", "name"), CASES)
def test_a_number_is_read_as_it_is_written_and_equals_no_other(text: str, name: str) -> None:
    value = number(text)
    assert value is not None
    for other in ALIKE:
        assert bool(value == number(other)) == (other == name), other
    assert list(numbers(f"So it is {text} .")) == [value]


def test_the_values_are_exact() -> None:
    assert [number(t) for t in ("0.1", "1/3", "50%", "-1.5e-2")] == [
        Fraction(1, 10), Fraction(1, 3), Fraction(1, 2), Fraction(-15, 1000),
    ]  # fmt: skip


NONE = [
    *("", ".", "-", "%", "five", "x85", "85x", "5 km", "5k", "0x1F", "3-5", "3 or 4", "3, 4", "1,2,3", "1.2.3"),
    *("12:30", "2020-01-02", "3/4/2020", "1/0", "1 1/0", "√2/0", "0^-1", "1e999999999", "9^999999999", "9" * 61),
    *("nan", "inf", "±5", "1 0000", "1 3/2", "5 and a half", "__import__('os')", "x**2", "9**9**9", "²"),
]


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_number_is_none(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("7+8=15, 3+4+1=8.", [7, 8, 15, 3, 4, 1, 8]),
        ("7 - 5 = 2", [7, 5, 2]),
        ("x = -3 and y = - 4", [-3, -4]),
        ("1, 2, 3", [1, 2, 3]),
        ("1,2,3", [1, 2, 3]),
        ("in 2020 100 people", [2020, 100]),
        ("on 26/11/2026", [26, 11, 2026]),
        ("version 1.2.3", []),
        ("25 m² or 25 m^2", [25, 25]),
        ("costs$5, or $1,000.50.", [5, Fraction(2001, 2)]),
    ],
)
def test_numbers_are_found_in_a_text(text: str, found: list) -> None:
    assert list(numbers(text)) == found


@given(st.fractions() | st.integers() | st.decimals(allow_nan=False, allow_infinity=False, places=3))
def test_a_number_that_is_written_out_is_read_back(value: object) -> None:
    text = str(value)
    if len(text) < 50:
        assert number(text) == Fraction(text)


@given(
    st.integers(0, 10**12),
    st.sampled_from([(",", "."), (".", ","), (" ", ","), ("\u202f", "."), ("'", "."), ("_", ".")]),
)
def test_thousands_and_decimals_are_told_apart(whole: int, marks: tuple[str, str]) -> None:
    text = f"{whole:,}".replace(",", marks[0]) + marks[1] + "25"
    assert number(text) == whole + Fraction(1, 4)


@pytest.mark.parametrize(
    "part", ["1 ", "1,", "1/", "1^", "√", r"\frac{", r"\sqrt", "½", "= ", "$ ", "1 000 ", "-", "9"]
)
def test_reading_takes_no_time_whatever_is_written(part: str) -> None:
    begun = time.process_time()
    list(numbers(part * (4000 // len(part))))
    number(part * (4000 // len(part)))
    assert time.process_time() - begun < 2
