"""Text from any model: token after token from a causal one (engine.py), else by unmasking (diffusion.py)."""

from collections.abc import Iterator, Sequence

from model.decoder import Decoder
from model.generate import diffusion, engine
from model.generate.decoding import GREEDY, Decoding
from model.generate.engine import Completion, Token


def generate(
    model: Decoder, prompts: Sequence[Sequence[int]], decoding: Decoding = GREEDY, seeds: Sequence[int] | None = None
) -> list[Completion]:
    """A completion for each prompt; see `engine.generate`."""
    return (engine if model.config.causal else diffusion).generate(model, prompts, decoding, seeds)


def stream(model: Decoder, prompt: Sequence[int], decoding: Decoding = GREEDY) -> Iterator[Token]:
    """The tokens of one completion, as soon as they are final."""
    return (engine if model.config.causal else diffusion).stream(model, prompt, decoding)
