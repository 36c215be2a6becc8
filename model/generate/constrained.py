"""Output that must be of a grammar: a matcher says before each token which ones may come; no other does.

    logits ─▶ tokens that the matcher lets come ─▶ distribution ─▶ a token ─▶ the matcher moves on

A row ends at a stop token, which may come where the text is whole, or by itself where nothing more may follow. What is
cut off by its length is only a beginning. The matcher is a library's, bound to a tokenizer by whoever has one.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from model.generate.history import Watcher


class Matcher(Protocol):
    """A text of a grammar, token by token."""

    def allowed(self) -> bytes:
        """Which tokens may come next, a bit each, the lowest of a byte first."""
        ...

    def take(self, token: int) -> bool:
        """Moves on by one that may come; True where nothing may follow it."""
        ...

    def fork(self) -> "Matcher": ...


class Constrained:
    """A row whose output a matcher watches. vocab_size: the model's, which may have rows for no token."""

    def __init__(self, matcher: Matcher, vocab_size: int) -> None:
        self.matcher, self.vocab_size = matcher, vocab_size

    def allowed(self) -> Tensor:
        bytes_N = torch.frombuffer(bytearray(self.matcher.allowed()), dtype=torch.uint8)
        bits = (bytes_N[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        found = torch.zeros(self.vocab_size, dtype=torch.bool)
        known = bits.flatten()[: self.vocab_size].bool()
        found[: len(known)] = known
        return found

    def take(self, token: int) -> bool:
        return self.matcher.take(token)

    def fork(self) -> "Constrained":
        return Constrained(self.matcher.fork(), self.vocab_size)


class Together:
    """Several watchers of one row: what all let come, and ended by any."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self.watchers = watchers

    def allowed(self) -> Tensor | None:
        masks = [mask for watcher in self.watchers if (mask := watcher.allowed()) is not None]
        return torch.stack(masks).all(0) if masks else None

    def take(self, token: int) -> bool:
        ended = [watcher.take(token) for watcher in self.watchers]  # all hear of it
        return any(ended)

    def fork(self) -> "Together":
        return Together([watcher.fork() for watcher in self.watchers])
