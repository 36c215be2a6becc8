"""What a kind of decoding is: an object over the engine, from prompts to completions.

    plain                    engine (causal) or diffusion: one completion a prompt
    best_of, self_consistency   many plain completions, and a choice among them
    beam                     the model's own steps, with rows that fork
    contrastive, dola        plain decoding of a model whose logits are two models'
    speculative, lookup, lookahead   the model's own steps over tokens that were guessed (rounds.py)

A kind is a frozen dataclass of options that inherits from Method, in a file of its own, with a line in kinds.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from model.decoder import Decoder
from model.errors import UserError
from model.generate import diffusion, engine
from model.generate.decoding import Decoding
from model.generate.engine import Completion, Token
from model.generate.history import Watch
from model.generate.option import check_options

Prompts = Sequence[Sequence[int]]


def _no_model(name: str) -> Decoder:
    raise UserError(f"the model {name!r} can't be loaded from here")


def _no_answer(row: int, completion: Completion, kind: str) -> str | None:
    raise UserError("self_consistency needs to know what of a text is its answer, which isn't known here")


@dataclass(frozen=True)
class Tools:
    """What a method needs that only its caller has: names and texts.

    load: another model of the same tokenizer, by its name. answer: what a completion of prompt number `row` says, for
    a vote, or None. score: how good it is, in [0, 1]. watch: makes a row's watcher.
    """

    load: Callable[[str], Decoder] = _no_model
    answer: Callable[[int, Completion, str], str | None] = _no_answer
    score: Callable[[int, Completion], float] | None = None
    watch: Watch | None = None


@dataclass(frozen=True)
class Method:
    """draws: whether it chooses among answers that must be drawn, so that they differ; greedy_only: nothing may be."""

    draws: ClassVar[bool] = False
    greedy_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def others(self) -> tuple[str, ...]:
        """The names of the models that it loads beside the one that is given."""
        return ()

    def generate(
        self, model: Decoder, prompts: Prompts, decoding: Decoding, seeds: Sequence[int], tools: Tools
    ) -> list[Completion]:
        """A completion for each prompt."""
        raise NotImplementedError

    def stream(self, model: Decoder, prompt: Sequence[int], decoding: Decoding, tools: Tools) -> Iterator[Token]:
        """The tokens of one completion, as soon as they are final: for most methods only when all is done."""
        yield from self.generate(model, [prompt], decoding, [decoding.seed], tools)[0]


class Plain(Method):
    """What a model does by itself."""

    def generate(
        self, model: Decoder, prompts: Prompts, decoding: Decoding, seeds: Sequence[int], tools: Tools
    ) -> list[Completion]:
        if model.config.causal:
            return engine.generate(model, prompts, decoding, seeds, watch=tools.watch)
        return diffusion.generate(model, prompts, decoding, seeds)

    def stream(self, model: Decoder, prompt: Sequence[int], decoding: Decoding, tools: Tools) -> Iterator[Token]:
        if model.config.causal:
            return engine.stream(model, prompt, decoding, tools.watch)
        return diffusion.stream(model, prompt, decoding)


def several(
    model: Decoder, prompts: Prompts, decoding: Decoding, seeds: Sequence[int], n: range, of: int, tools: Tools
) -> list[list[Completion]]:
    """Of each prompt its plain completions with the numbers in `n`, of `of` that there are to be.

    Number j of a row with seed s has the seed s * of + j: no two rows of a batch share one, and the first few are the
    same however many are drawn at once.
    """
    every = [prompt for prompt in prompts for _ in n]
    given = Plain().generate(model, every, decoding, [seed * of + j for seed in seeds for j in n], tools)
    return [given[i : i + len(n)] for i in range(0, len(given), len(n))]


def only_causal(model: Decoder, kind: str) -> None:
    """UserError for a model that has no next token."""
    if not model.config.causal:
        raise UserError(f"{kind} reads a next token's probabilities, which a diffusion model doesn't have")


def of_one_tokenizer(model: Decoder, tools: Tools, kind: str, option: str, name: str) -> Decoder:
    """Another model by its name; UserError for one that has no next token, or that reads other tokens."""
    only_causal(model, kind)
    other = tools.load(name)
    only_causal(other, kind)
    if other.config.vocab_size != model.config.vocab_size:
        raise UserError(
            f"{option} = {name!r} has {other.config.vocab_size} tokens, and the model has {model.config.vocab_size}: "
            f"{kind} decoding needs two models of one tokenizer"
        )
    return other
