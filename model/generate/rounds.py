"""Decoding that may give a text several tokens a step: what speculative decoding and lookahead have in common.

    text   p r o m p t x     its state has absorbed all but the last token, which the next step begins with
    step   x g g g g         the model reads it and guesses of what follows, and says what should have followed each
    text   p r o m p t x g g y

Texts of a batch begin together, and leave it one by one. What a step makes of its guesses is the method's own.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from model.decoder import Decoder
from model.generate.batches import check_prompts, in_batches
from model.generate.decoding import Decoding
from model.generate.engine import Completion, Token
from model.generate.method import Method, Prompts, Tools, only_causal
from model.segments import Segments
from model.state import State


@dataclass(eq=False)
class Text:
    """ids: its prompt and what has been written. most: tokens to write. fresh: those that nobody has been shown yet."""

    ids: list[int]
    seed: int
    most: int
    completion: Completion = field(default_factory=Completion)
    fresh: list[Token] = field(default_factory=list)
    done: bool = False

    @property
    def left(self) -> int:
        return self.most - len(self.completion.tokens)

    def add(self, token: Token, ends: bool) -> None:
        self.ids.append(token.id)
        self.completion.add(token)
        self.fresh.append(token)
        if ends:
            self.completion.finish = "stop"
        self.done = ends or not self.left


class InRounds(Method):
    """name: for messages; at_once: texts in a batch."""

    name: ClassVar[str]
    at_once: ClassVar[int] = 128

    def rounds(self, model: Decoder, texts: list[Text], decoding: Decoding, tools: Tools) -> Iterator[None]:
        """A step of the model for each item, until all texts are done."""
        raise NotImplementedError

    def generate(
        self, model: Decoder, prompts: Prompts, decoding: Decoding, seeds: Sequence[int], tools: Tools
    ) -> list[Completion]:
        done: dict[int, Completion] = {}
        for rows, chosen, some in in_batches(prompts, seeds, self.at_once):
            texts = self._texts(model, chosen, some, decoding)
            for _ in self._run(model, texts, decoding, tools):
                pass
            done |= {row: text.completion for row, text in zip(rows, texts, strict=True)}
        return [done[row] for row in range(len(prompts))]

    def stream(self, model: Decoder, prompt: Sequence[int], decoding: Decoding, tools: Tools) -> Iterator[Token]:
        (text,) = self._texts(model, [prompt], [decoding.seed], decoding)
        for _ in self._run(model, [text], decoding, tools):
            yield from text.fresh
            text.fresh.clear()

    def _texts(self, model: Decoder, prompts: Prompts, seeds: Sequence[int], decoding: Decoding) -> list[Text]:
        only_causal(model, self.name)
        limit = model.config.max_seq_len
        check_prompts(prompts, limit, 0, model.config.vocab_size)
        return [
            Text([int(token) for token in prompt], seed, min(decoding.max_new_tokens, limit - len(prompt) + 1))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def _run(self, model: Decoder, texts: list[Text], decoding: Decoding, tools: Tools) -> Iterator[None]:
        steps, over = self.rounds(model, list(texts), decoding, tools), object()
        while True:
            with torch.no_grad():  # around each step alone: whoever reads the tokens may have use for gradients
                if next(steps, over) is over:
                    return
            yield


def absorb(model: Decoder, state: State, parts: Sequence[Sequence[int]]) -> tuple[Tensor, State]:
    """Hidden states (B, T, D) of each row's next tokens, T of them or fewer; some may have none."""
    device, lengths = state.lengths_B.device, [len(part) for part in parts]
    T = max(lengths)
    padded = torch.tensor([[*part, *[0] * (T - len(part))] for part in parts], device=device)
    lengths_B = torch.tensor(lengths, device=device)
    segments = None if min(lengths) == T else Segments.padded(lengths_B, T)
    longest = int((state.lengths_B + lengths_B).max())
    hidden, after = model(padded, segments=segments, state=state)
    assert after is not None
    after.longest = longest  # not a sum of padded lengths
    return hidden, after


def prefilled(model: Decoder, texts: Sequence[Text]) -> State:
    """Of all tokens of each text but its last, with room for the rest."""
    state = model.new_state(len(texts), max(len(text.ids) + text.most - 1 for text in texts))
    parts = [text.ids[:-1] for text in texts]
    return absorb(model, state, parts)[1] if any(parts) else state


def index(rows: Iterable[int], like: Tensor) -> Tensor:
    return torch.tensor([*rows], dtype=torch.long, device=like.device)
