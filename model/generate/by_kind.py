"""Text from any model, by the decoding's kind; plain: token after token from a causal one, else by unmasking."""

from collections.abc import Iterator, Sequence

from model.decoder import Decoder
from model.generate.decoding import GREEDY, Decoding
from model.generate.engine import Completion, Token
from model.generate.method import Plain, Tools


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding = GREEDY,
    seeds: Sequence[int] | None = None,
    tools: Tools | None = None,
) -> list[Completion]:
    """A completion for each prompt; see `engine.generate`. tools: what some kinds need."""
    seeds = [decoding.seed + i for i in range(len(prompts))] if seeds is None else seeds
    return (decoding.method or Plain()).generate(model, prompts, decoding, seeds, tools or Tools())


def stream(
    model: Decoder, prompt: Sequence[int], decoding: Decoding = GREEDY, tools: Tools | None = None
) -> Iterator[Token]:
    """The tokens of one completion, as soon as they are final."""
    return (decoding.method or Plain()).stream(model, prompt, decoding, tools or Tools())
