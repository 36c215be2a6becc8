"""Text from any model: token after token from a causal one (engine.py), else by unmasking (diffusion.py)."""

from collections.abc import Iterator, Sequence

from model.decoder import Decoder
from model.generate import diffusion, engine
from model.generate.engine import Completion, Token
from model.generate.sampling import GREEDY, Sampling
from model.generate.unmasking import ONE_BY_ONE, Unmasking


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_ids: Sequence[int] = (),
    seed: int | Sequence[int] = 0,
    unmasking: Unmasking = ONE_BY_ONE,
) -> list[Completion]:
    """A completion for each prompt; `unmasking` says how, if the model isn't causal."""
    if model.config.causal:
        return engine.generate(model, prompts, max_new_tokens, sampling, stop_ids, seed)
    return diffusion.generate(model, prompts, max_new_tokens, sampling, stop_ids, seed, unmasking=unmasking)


def stream(
    model: Decoder,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_ids: Sequence[int] = (),
    seed: int = 0,
    unmasking: Unmasking = ONE_BY_ONE,
) -> Iterator[Token]:
    """The tokens of one completion, as soon as they are final."""
    if model.config.causal:
        return engine.stream(model, prompt, max_new_tokens, sampling, stop_ids, seed)
    return diffusion.stream(model, prompt, max_new_tokens, sampling, stop_ids, seed, unmasking)
