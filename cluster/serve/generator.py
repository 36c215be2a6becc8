"""From the name of a model to text: find its files, load it once, complete and chat.

MODEL                       models:/NAME@ALIAS, models:/NAME/VERSION, models:/NAME (its champion), or a folder
  └─ model_folder(MODEL)    a folder with model.safetensors, config.json, tokenizer.model, tokenizer.json
       └─ Generator(folder)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import UserError
from cluster.registry.find import model_folder
from cluster.serve.answer import Answer, Clock
from cluster.serve.context import Message, Prompt, fit
from cluster.serve.stops import said, settled
from cluster.serve.tools import load_beside, tools
from cluster.tracking.place import Place
from model.generate.decoding import TEXT, Decoding

if TYPE_CHECKING:
    from model.generate.engine import Completion
    from model.generate.method import Tools

UNFINISHED = "\ufffd"


class Generator:
    """A model that is loaded once and asked often. Not for two threads at once.

    Args:
        folder: as `model_folder` returns it.
        device: a torch device; default: a GPU if there is one.

    Attributes:
        say: hears a sentence of each prompt that outgrows the context: what was left out of it. Default: a warning.
        last: the last answer that was streamed to its end, with its figures.
    """

    def __init__(self, folder: Path | str, device: str | None = None, place: Place | None = None):
        import torch

        from cluster.data.tokenizer.tokenizer import Tokenizer
        from model.checkpoint import load_model

        self.say: Callable[[str], Any] = logging.getLogger(__name__).warning
        self.last: Answer | None = None
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._load = cache(partial(load_beside, folder=Path(folder), device=self.device, place=place))
        self.tokenizer = Tokenizer(folder)
        self.model = load_model(folder, self.device)

    @classmethod
    def load(cls, model: str | Path, place: Place | None = None, device: str | None = None) -> Generator:
        """By name; see `model_folder`."""
        return cls(model_folder(model, place), device, place)

    def complete(self, text: str, decoding: Decoding = TEXT, **changes: Any) -> str:
        """What follows `text`; see `generate`."""
        return self.generate([text], decoding, **changes)[0]

    def chat(self, messages: Sequence[Message], decoding: Decoding = TEXT, **changes: Any) -> str:
        """The assistant's answer to a conversation; see `generate`."""
        return self.generate([messages], decoding, **changes)[0]

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding = TEXT, **changes: Any) -> list[str]:
        """Text for each prompt, in one batch: a string is completed as it is, messages are answered.

        Args:
            decoding: how; prompt i has its seed + i.
            changes: fields of `decoding` that are to be other, such as max_new_tokens=20.

        Raises:
            UserError: a number out of its range, messages that the chat template doesn't allow, or a last message that
                the context doesn't hold.
        """
        return [answer.text for answer in self.answers(prompts, decoding, **changes)]

    def answers(self, prompts: Sequence[Prompt], decoding: Decoding = TEXT, **changes: Any) -> list[Answer]:
        """As `generate`, with the tokens and the figures of each; steps and seconds are those of the whole batch."""
        from model.generate.by_kind import generate

        decoding = self._possible(replace(decoding, **changes))
        ids = [self.encode(p, decoding.max_new_tokens) for p in prompts]
        with Clock(self.model) as clock:
            done = generate(self.model, ids, self._ended(decoding), tools=self._tools(decoding))
        return [self._answer(c, p, decoding, clock) for p, c in zip(prompts, done, strict=True)]

    def stream(self, prompt: Prompt, decoding: Decoding = TEXT, **changes: Any) -> Iterator[str]:
        """The text of one answer in pieces, as it is drawn; joined, it is what `generate` returns."""
        from model.generate.by_kind import stream
        from model.generate.engine import Completion

        decoding = self._possible(replace(decoding, **changes))
        drawn = Completion()
        shown = text = ""
        ids = self.encode(prompt, decoding.max_new_tokens)
        with Clock(self.model) as clock:
            for token in stream(self.model, ids, self._ended(decoding), self._tools(decoding)):
                drawn.add(token)
                text, ended = said(self.tokenizer, drawn.tokens, decoding, isinstance(prompt, str))
                if ended:
                    break
                # The last bytes may become a character with the next token, and the last characters a stop.
                whole = settled(text.rstrip(UNFINISHED), decoding.stop_texts)
                if len(whole) > len(shown):
                    yield whole[len(shown) :]
                    shown = whole
            if len(text) > len(shown):
                yield text[len(shown) :]
        self.last = self._answer(drawn, prompt, decoding, clock)

    def _answer(self, completion: Completion, prompt: Prompt, decoding: Decoding, clock: Clock) -> Answer:
        texts = [
            said(self.tokenizer, one.tokens, decoding, isinstance(prompt, str))[0]
            for one in (completion, *completion.others)
        ]
        return Answer(texts[0], completion, tuple(texts[1:]), clock.steps, clock.seconds)

    def _ended(self, decoding: Decoding) -> Decoding:
        return decoding.ended_by(self.tokenizer.stop_ids)

    def _tools(self, decoding: Decoding) -> Tools:
        return tools(self.tokenizer, decoding, self.model, self._load)

    def piece(self, token: int) -> str:
        """What a token says by itself."""
        return self.tokenizer.decode([token], continues=True)

    def encode(self, prompt: Prompt, max_new_tokens: int) -> list[int]:
        """A prompt's ids, as far as the context holds them beside an answer; see context.py."""
        ids, left_out = fit(self.tokenizer, prompt, self.model.config.max_seq_len, max_new_tokens)
        if left_out:
            self.say(left_out)
        return ids

    def _possible(self, decoding: Decoding) -> Decoding:
        if decoding.unmasks and self.model.config.causal:
            names = " and ".join(decoding.unmasks)
            raise UserError(f"{names}: for diffusion models; this one writes token after token.")
        return decoding
