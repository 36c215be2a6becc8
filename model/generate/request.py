"""What an engine is asked, and what it answers: a request, its handle, and the completion that grows there."""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import starmap
from typing import Literal

from model.generate.decoding import GREEDY, Decoding
from model.generate.history import Watch
from model.generate.sampling import Alternatives

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Token:
    """drafted: guesses that the step made in whose answer it is the first; accepted: whether it was one of them."""

    id: int
    logprob: float
    sampled_logprob: float
    top: Alternatives = field(default_factory=list)
    drafted: int = 0
    accepted: bool = False


@dataclass
class Completion:
    """tokens: without the prompt; a stop token that ended it is the last one (finish "stop").

    logprobs: log-probability of each token under the model itself (temperature 1, nothing truncated): the
    policy's. sampled_logprobs: under the distribution it was drawn from (0.0 for greedy). top: the likeliest tokens
    beside each, where the decoding asks for them. others: what else was written for the prompt, the best first.
    drafted, accepted: tokens that were guessed ahead, and those of them that are in it.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled_logprobs: list[float] = field(default_factory=list)
    finish: Finish = "length"
    top: list[Alternatives] = field(default_factory=list)
    others: list["Completion"] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0

    def add(self, token: Token) -> None:
        self.tokens.append(token.id)
        self.logprobs.append(token.logprob)
        self.sampled_logprobs.append(token.sampled_logprob)
        if token.top:
            self.top.append(token.top)
        self.drafted += token.drafted
        self.accepted += token.accepted

    def __iter__(self) -> Iterator[Token]:
        """Its tokens, as they would have been streamed."""
        tops = self.top or [[] for _ in self.tokens]
        return starmap(Token, zip(self.tokens, self.logprobs, self.sampled_logprobs, tops, strict=True))

    @property
    def mean_logprob(self) -> float:
        """Of its tokens under the model; 0 for none."""
        return sum(self.logprobs) / max(1, len(self.logprobs))


@dataclass(frozen=True)
class Request:
    """seed: default, the decoding's. watch: makes the row's watcher; a row that it ends has finish "stop"."""

    prompt: Sequence[int]
    decoding: Decoding = GREEDY
    seed: int | None = None
    watch: Watch | None = None


class Handle:
    """One request inside an engine; may be read from any thread.

    completion: what has been drawn so far. error: why it ended early. done: set at its end, whatever that was.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.completion = Completion()
        self.error: Exception | None = None
        self.cancelled = False
        self.done = threading.Event()
        self.arrived: queue.SimpleQueue[Token | None] = queue.SimpleQueue()  # None: no more will come

    def add(self, token: Token) -> None:
        self.completion.add(token)
        self.arrived.put(token)

    def end(self, error: Exception | None = None) -> None:
        self.error = error
        self.done.set()
        self.arrived.put(None)
