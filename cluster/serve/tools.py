"""What a kind of decoding asks of its surroundings: other models by name, what a text's answer is, where it stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import UserError
from cluster.registry.find import model_folder
from cluster.serve.stops import StopWatch, said
from cluster.tracking.place import Place
from cluster.verify.answers import answer_of

if TYPE_CHECKING:
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.decoder import Decoder
    from model.generate.decoding import Decoding
    from model.generate.engine import Completion
    from model.generate.method import Tools


def tools(
    tokenizer: Tokenizer,
    decoding: Decoding,
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

    def watch() -> StopWatch:
        return StopWatch(decoding, tokenizer.decode)

    return Tools(load=load, answer=answer, watch=watch if decoding.stop_texts else None)


def load_beside(name: str, folder: Path, device: str, place: Place | None = None) -> Decoder:
    """Another model for the one in `folder`. UserError for one of another tokenizer: its ids would mean other texts."""
    from model.checkpoint import load_model

    found = model_folder(name, place)
    if any((found / file).read_bytes() != (folder / file).read_bytes() for file in ("tokenizer.model",)):
        raise UserError(f"{name} has another tokenizer than {folder}: both models must have read the same tokens.")
    return load_model(found, device)
