"""Texts that end an answer, found in what a model writes; that text itself is left out.

stops ("###", "\n\n")     "one two##"  ->  "one two", held back, since a stop may have begun      (a stream)
                          "one two### three"  ->  "one two"
"""

from collections.abc import Sequence


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """(`text` before the stop that is complete first, whether there is one): the same however the text arrives."""
    ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return (text[: min(ends)[1]], True) if ends else (text, False)


def settled(text: str, stops: Sequence[str]) -> str:
    """`text` without the end that may be the beginning of a stop."""
    held = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - held]
