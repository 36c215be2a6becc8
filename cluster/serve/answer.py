"""One answer with what it took: its tokens, the model's steps, the time; in words, and as JSON."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.generate.engine import Completion

Piece = Callable[[int], str]  # what a token says by itself


@dataclass(frozen=True)
class Answer:
    """text: as people see it, of `completion`; others: what else was written for the prompt, the best first.

    steps: forward passes of the model; seconds: until the last token.
    """

    text: str
    completion: Completion
    others: tuple[str, ...]
    steps: int
    seconds: float

    @property
    def figures(self) -> dict[str, float]:
        tokens, drafted = len(self.completion.tokens), self.completion.drafted
        guessed = {"drafted": drafted, "accepted": self.completion.accepted} if drafted else {}
        return {
            "new_tokens": tokens,
            "steps": self.steps,
            **guessed,
            "seconds": round(self.seconds, 4),
            "tokens_per_second": round(tokens / max(self.seconds, 1e-9), 2),
        }

    def words(self) -> str:
        beside = f", the best of {len(self.others) + 1} answers" if self.others else ""
        said = self.figures
        guessed = f", {said['accepted']} of {said['drafted']} guesses accepted" if "drafted" in said else ""
        speed = said["tokens_per_second"]
        return f"({said['new_tokens']} tokens in {self.steps} steps{guessed}, {speed} tokens/s{beside})"

    def table(self, piece: Piece) -> list[str]:
        """A line for each token: the likeliest ones that there were in its place, with their probabilities."""
        return [
            f"{piece(token)!r}: " + ", ".join(f"{piece(other)!r} {math.exp(value):.3f}" for other, value in top)
            for token, top in zip(self.completion.tokens, self.completion.top, strict=False)
        ]

    def report(self, piece: Piece) -> dict[str, Any]:
        """As JSON: new tokens' ids as `tokens`, log-probabilities under the model, and the figures."""
        one = self.completion
        found: dict[str, Any] = {
            "text": self.text,
            "finish": one.finish,
            "tokens": one.tokens,
            "logprobs": one.logprobs,
            **self.figures,
        }
        if one.top:
            found["top_logprobs"] = [
                [{"id": id_, "text": piece(id_), "logprob": value} for id_, value in top if value > -math.inf]
                for top in one.top
            ]
        if self.others:
            found["others"] = [
                {"text": text, "tokens": other.tokens, "logprobs": other.logprobs, "finish": other.finish}
                for text, other in zip(self.others, one.others, strict=True)
            ]
        return found


class Clock:
    """Counts a model's forward passes, and the seconds, while it is entered."""

    def __init__(self, model: Any):
        self.model, self.steps, self.seconds = model, 0, 0.0

    def __enter__(self) -> Clock:
        self._hook = self.model.register_forward_pre_hook(self._count)
        self._began = time.perf_counter()
        return self

    def _count(self, *_: Any) -> None:
        self.steps += 1

    def __exit__(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self._began
        self._hook.remove()
