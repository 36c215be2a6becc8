"""Numbers as people write them, each with its value: what the verifier `number` compares.

    85  -3  .5  1,234  12,34,567  1 000  1'000  1.000,50  1,5       a mark between thousands, one before decimals
    1/2  2 1/2  2½  50%  5 percent  3 million  $5  5 €  -$5         fractions, shares, money
    1e-3  1.5 × 10^3  2^10  10³  \\frac{1}{2}  \\sqrt{8}  2√2  π/2    powers, roots, TeX

Of "1,234" and "1.234", which are two numbers each, the English one is taken: a thousand and more, one and a bit; "1,23"
and "0,500" can only have a decimal comma. 50% is one half. Only what this grammar takes is computed with, and its size
is bounded: no text of a stranger is evaluated. Rational values are compared by `fractions`, roots and π by sympy.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

Number = Any  # a Fraction, or sympy's expression of what isn't rational

DIGITS = 60  # of a number; longer ones are garbage
EXPONENT = 300  # the largest power
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}

_RUN = r"(?>\d+(?:[.,'_]\d+|\ \d{3}(?!\d))*|\.\d+)"  # digits with marks between them; see `_decimal`
_QUANTITY = re.compile(
    rf"""
    (?<![\w.^])(?P<sign>[-+])?
    (?:
        (?P<mantissa>{_RUN})(?:[eE]|\ ?[×*·x]\ ?10\ ?(?:\^|\*\*)\ ?)\(?(?P<exponent>[-+]?\d++)\)?
      | (?P<base>{_RUN})\ ?(?:\^|\*\*)\ ?\(?(?P<power>[-+]?\d++)\)?
      | (?P<whole>\d++)\ (?P<part>\d++)\ ?/\ ?(?P<parts>\d++)(?!\ ?/)
      | (?:(?P<times>{_RUN})\ ?[*·×]?\ ?)?(?:√\(?(?P<root>{_RUN})\)?|(?P<pi>π))(?:\ ?/\ ?(?P<divisor>{_RUN}))?
      | (?<!/)(?<!/\ )(?P<over>{_RUN})\ ?/\ ?(?P<under>[-+]?{_RUN})(?!\ ?[/√π^])
      | (?P<plain>{_RUN})
    )
    (?P<percent>\ ?%|\ per\ ?cent\b)?
    (?:\ (?P<scale>{"|".join(SCALES)})\b)?
    """,
    re.VERBOSE,
)
_NAMED = re.compile(r"(?:[^\W\d]\w* ?[=≈]|[≈~]) ?")  # what may stand before a number that is all there is
_MARKS = re.compile(r"[ ,'_]")

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_ONE_SIGN = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-")
    | dict.fromkeys("\u2044\u2215", "/")
    | {"\u066b": ".", "\u066c": "'", "\u2019": "'", "\u066a": "%", "\u22c5": "·", "\u2217": "*", "\uff05": "%"}
)
_TEX = [
    (re.compile(pattern), made)
    for pattern, made in [
        (r"\\(?:left|right|displaystyle|,|;|!|:)|\{,\}(?=\d)", ""),
        (r"\\([$%])", r"\1"),
        (r"\\(?:times|cdot)\b", "×"),
        (r"\\pi\b", "π"),
        (r"\\sqrt\s*\{([^{}]*)\}", r"√(\1)"),
        (r"\\sqrt\s*(\d)", r"√\1"),
        (r"\^\s*\{([^{}]*)\}", r"^\1"),
        (r"(?<=\d)\s*(?=\\[dt]?frac)", " "),
        (r"\\[dt]?frac\s*\{([^{}+*]*)\}\s*\{([^{}+*]*)\}", r"\1/\2"),
        (r"\\[dt]?frac\s*(\d)\s*(\d)", r"\1/\2"),
        (r"\\(?:boxed|text|mathrm|mathbf)\s*\{([^{}]*)\}", r" \1 "),
    ]
]
_MONEY = re.compile(r"(?<!\w)(?:US|AU?|CA?|NZ|HK)?\$ ?(?=[-+\d.√π])")
_SIGN_APART = re.compile(r"((?:^|[=:≈~(]|\bis)\s*)(?:([-+])|(?:minus|negative)\b)\s+(?=[\d.√π])", re.IGNORECASE)


def numbers(text: str) -> Iterator[Number]:
    """The numbers in a running text, in their order."""
    for match in _QUANTITY.finditer(_normal(text)):
        value = _value(match)
        if value is not None:
            yield value
        elif match["plain"]:  # a list, as "1,2,3" is
            yield from (part for text in _MARKS.split(match["plain"]) if (part := _decimal(text)) is not None)


def number(text: str) -> Number | None:
    """The number that a whole text is, beside a sign of money or a name as in "x = 5"; None if it is none."""
    text = _normal(text).strip().rstrip(".").strip()
    named = _NAMED.match(text)
    match = _QUANTITY.fullmatch(text, named.end() if named else 0)
    return _value(match) if match else None


def _normal(text: str) -> str:
    """The same text with one sign for each thing, and without TeX and the signs of money."""
    text = re.sub(r"(?<=[\d)])[⁰¹²³⁴-⁹⁺⁻]+", lambda found: "^" + found[0].translate(_SUPERSCRIPTS), text)
    text = "".join(c if c.isascii() else _plain(c) for c in text).translate(_ONE_SIGN)
    text = re.sub(r"(\d?)\0", lambda found: found[1] + " " if found[1] else "", text)  # 2½ is 2 1/2
    for pattern, made in _TEX:
        text = pattern.sub(made, text)
    text = _MONEY.sub("", text).replace("$", " ")
    return _SIGN_APART.sub(lambda found: found[1] + (found[2] or "-"), text)


def _plain(character: str) -> str:
    kind = unicodedata.category(character)
    if kind == "Nd":
        return str(unicodedata.decimal(character))
    if kind == "Zs":
        return " "
    if kind == "Sc":
        return "$"
    if kind == "No":
        made = unicodedata.normalize("NFKC", character)
        return "\0" + made if "\u2044" in made else character
    return character


def _value(match: re.Match[str]) -> Number | None:
    """What a quantity is worth; None if it is too large, divides by zero, or has marks that mean nothing."""
    try:
        value = _size(match)
    except (_Unread, ZeroDivisionError):
        return None
    if match["percent"]:
        value = value / 100
    if match["scale"]:
        value = value * 10 ** SCALES[match["scale"]]
    return -value if match["sign"] == "-" else value


class _Unread(Exception):
    """Digits that are no number."""


def _size(match: re.Match[str]) -> Number:
    if match["mantissa"]:
        return _read(match["mantissa"]) * Fraction(10) ** _exponent(match["exponent"])
    if match["base"]:
        return _read(match["base"]) ** _exponent(match["power"])
    if match["whole"]:
        part = _read(match["part"]) / _read(match["parts"])
        if part >= 1:
            raise _Unread
        return _read(match["whole"]) + part
    if match["over"]:
        under = match["under"]
        return _read(match["over"]) / (-_read(under[1:]) if under[0] == "-" else _read(under.lstrip("+")))
    if match["root"] or match["pi"]:
        return _irrational(match)
    return _read(match["plain"])


def _irrational(match: re.Match[str]) -> Number:
    import sympy

    def exact(text: str | None) -> Any:
        value = _read(text) if text else Fraction(1)
        return sympy.Rational(value.numerator, value.denominator)

    if match["divisor"] and not _read(match["divisor"]):
        raise ZeroDivisionError
    value = exact(match["times"]) * (sympy.pi if match["pi"] else sympy.sqrt(exact(match["root"])))
    value = value / exact(match["divisor"])
    return Fraction(int(value.p), int(value.q)) if isinstance(value, sympy.Rational) else value


def _exponent(text: str) -> int:
    if len(text) > 4 or abs(int(text)) > EXPONENT:
        raise _Unread
    return int(text)


def _read(text: str) -> Fraction:
    value = _decimal(text)
    if value is None:
        raise _Unread
    return value


_GROUPED = r"[1-9]\d{0,2}"
_FORMS = [  # (digits with a mark between thousands, the marks that may stand before its decimals)
    (rf"{_GROUPED}(?:,\d{{3}})+|[1-9]\d?(?:,\d\d)+,\d{{3}}", "."),
    (rf"{_GROUPED}(?:\.\d{{3}}){{2,}}", ","),
    (rf"{_GROUPED}(?:\.\d{{3}})+(?=,)", ","),
    (rf"{_GROUPED}(?: \d{{3}})+|{_GROUPED}(?:'\d{{3}})+|\d+(?:_\d+)+", ".,"),
    (r"\d*", ".,"),
]
_DECIMALS = [re.compile(rf"({whole})(?:[{marks}](\d+))?") for whole, marks in _FORMS]


def _decimal(text: str) -> Fraction | None:
    """The value of digits with marks between them, without a sign; None where the marks mean nothing."""
    if not text or len(text) > DIGITS:
        return None
    for form in _DECIMALS:
        found = form.fullmatch(text)
        if found:
            whole, decimals = re.sub(r"\D", "", found[1]), found[2] or ""
            return Fraction(int(whole + decimals), 10 ** len(decimals))
    return None
