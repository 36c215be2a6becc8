"""Texts that end an answer, found in what a model writes; that text itself is left out.

stops ("###", "\n\n")     "one two##"  ->  "one two", held back, since a stop may have begun      (a stream)
                          "one two### three"  ->  "one two"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from model.generate.decoding import Decoding

if TYPE_CHECKING:
    from torch import Tensor

    from cluster.data.tokenizer.tokenizer import Tokenizer

Text = Callable[[Sequence[int]], str]


def cut(text: str, stops: Sequence[str], after: int = 0) -> tuple[str, bool]:
    """(`text` before the stop that is complete first, whether there is one): the same however the text arrives.

    after: a stop that is complete within so many characters is none.
    """
    found = [(text.find(stop, max(0, after + 1 - len(stop))), stop) for stop in stops]
    ends = [(at + len(stop), at) for at, stop in found if at >= 0]
    return (text[: min(ends)[1]], True) if ends else (text, False)


def said(tokenizer: Tokenizer, tokens: Sequence[int], decoding: Decoding, continues: bool) -> tuple[str, bool]:
    """(what tokens say before one of the decoding's stops, whether there is one); continues: a text, not an answer."""

    def text(ids: Sequence[int]) -> str:
        return tokenizer.decode(list(ids), continues=continues)

    at_id = bool(tokens) and tokens[-1] in decoding.stop_ids
    before, at_text = cut(text(tokens[:-1] if at_id else tokens), decoding.stop_texts, _least(tokens, decoding, text))
    return before, at_id or at_text


class StopWatch:
    """Ends a row as soon as its text has a stop, also one that begins and ends amid tokens: a `Watcher`.

    text: what an answer's tokens say.
    """

    def __init__(self, decoding: Decoding, text: Text, tokens: Sequence[int] = ()):
        self.decoding, self.text, self.tokens = decoding, text, list(tokens)

    def allowed(self) -> Tensor | None:
        return None

    def take(self, token: int) -> bool:
        self.tokens.append(token)
        least = _least(self.tokens, self.decoding, self.text)
        return cut(self.text(self.tokens), self.decoding.stop_texts, least)[1]

    def fork(self) -> StopWatch:
        return StopWatch(self.decoding, self.text, self.tokens)


def _least(tokens: Sequence[int], decoding: Decoding, text: Text) -> int:
    """The characters of the tokens that there must be before an answer may end."""
    return len(text(tokens[: decoding.min_new_tokens])) if decoding.min_new_tokens and decoding.stop_texts else 0


def settled(text: str, stops: Sequence[str]) -> str:
    """`text` without the end that may be the beginning of a stop."""
    held = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - held]
