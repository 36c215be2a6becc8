"""What a kind of decoding asks of its surroundings: other models by name, what a text's answer is, where it stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import UserError
from cluster.registry.find import model_folder
from cluster.serve.grammar import matcher
from cluster.serve.stops import StopWatch, said
from cluster.tracking.place import Place
from cluster.verify.answers import answer_of
from model.generate.decoding import CONSTRAINTS, Decoding

if TYPE_CHECKING:
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.decoder import Decoder
    from model.generate.engine import Completion
    from model.generate.history import Watch, Watcher
    from model.generate.method import Tools

TOKENIZER = "tokenizer.model"


def tools(
    tokenizer: Tokenizer,
    decoding: Decoding,
    model: Decoder,
    load: Callable[[str], Decoder],
    tasks: Sequence[Mapping[str, Any]] | None = None,
) -> Tools:
    """For prompts in the order of `tasks`, if those are known: an answer is then read as a task's verifier reads it."""
    from model.generate.method import Tools

    ends = decoding.ended_by(tokenizer.stop_ids).stop_ids

    def answer(row: int, completion: Completion, kind: str) -> str | None:
        tokens = completion.tokens[:-1] if completion.tokens[-1] in ends else completion.tokens
        text, _ = said(tokenizer, tokens, decoding, continues=False)
        return answer_of(text, kind, None if tasks is None else tasks[row])

    return Tools(load=load, answer=answer, watch=_watch(tokenizer, decoding, model))


def _watch(tokenizer: Tokenizer, decoding: Decoding, model: Decoder) -> Watch | None:
    """What ends a row at a text, and what holds it to a grammar."""
    from model.generate.constrained import Constrained, Together

    made = matcher(tokenizer, decoding)
    if made is not None and not model.config.causal:
        name = next(name for name in CONSTRAINTS if getattr(decoding, name))
        raise UserError(f"{name}: a diffusion model doesn't write from left to right, as a grammar is followed")
    if made is None and not decoding.stop_texts:
        return None

    def watch() -> Watcher:
        stops = [StopWatch(decoding, tokenizer.decode)] if decoding.stop_texts else []
        return Together([*([Constrained(made(), model.config.vocab_size)] if made else []), *stops])

    return watch


def load_beside(name: str, folder: Path, device: str, place: Place | None = None) -> Decoder:
    """Another model for the one in `folder`. UserError for one of another tokenizer: its ids would mean other texts."""
    from model.checkpoint import load_model

    found = model_folder(name, place)
    if (found / TOKENIZER).read_bytes() != (folder / TOKENIZER).read_bytes():
        raise UserError(f"{name} has another tokenizer than {folder}: both models must have read the same tokens.")
    return load_model(found, device)
