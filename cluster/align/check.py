"""Before an alignment: are its data right, and do they fit? See cluster.stage.Stage.check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.align.config import PREFERENCE
from cluster.align.split import split
from cluster.data.examples import examples, generated
from cluster.data.examples.lengths import task_fits
from cluster.data.tokenizer.chat import Rendered, render, render_answer
from cluster.errors import UserError
from cluster.train.cost import model_of

if TYPE_CHECKING:
    from cluster.align.config import RlhfConfig
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from cluster.stage import Step


def check_instruct(step: Step, tokenizer: Path | None) -> None:
    """Raises UserError for a wrong chat example, and if none of them has an answer that begins within a row."""
    from cluster.data.tokenizer.tokenizer import Tokenizer

    data, seq_len = step.config.data, step.config.train.seq_len
    if tokenizer is None:
        _named("instruct", lambda: examples.read_chat(_files(data)))
        return
    pieces = Tokenizer(tokenizer)
    if not any(any(render(pieces, chat["messages"]).mask[:seq_len]) for chat in examples.read_chat(data)):
        raise UserError(f"[instruct] no chat has an assistant's token within train.seq_len = {seq_len}: raise it.")


def check_rlhf(step: Step, tokenizer: Path | None) -> None:
    """Raises UserError for a wrong task or pair, and if none is left to train on or to be scored on.

    With a tokenizer also for a prompt that the context doesn't hold, and if no pair of either part fits.
    """
    from cluster.data.tokenizer.tokenizer import Tokenizer

    config: RlhfConfig = step.config
    if tokenizer is None:
        if _files((*config.data, *config.heldout)):
            _named("rlhf", lambda: split(config))
        return
    _named("rlhf", lambda: _aligned(config, Tokenizer(tokenizer), model_of(step).max_seq_len))


def _aligned(config: RlhfConfig, tokenizer: Tokenizer, context: int) -> None:
    if config.method not in PREFERENCE:
        examples.read_tasks((*config.data, *config.heldout), fits=task_fits(tokenizer, context))
        split(config)
        return
    longest = min(config.train.seq_len, context)
    for part, of in zip(split(config), ("train on", "be scored on"), strict=True):
        if not any(_longest(tokenizer, pair) <= longest for pair in part):
            key = "rlhf.train.seq_len" if longest < context else "rlhf.train.seq_len and model.max_seq_len"
            raise UserError(f"no preference pair to {of} fits into {longest} tokens: raise {key}, or shorten them.")


def rendered_pair(tokenizer: Tokenizer, pair: Mapping) -> tuple[Rendered, Rendered]:
    """A pair's conversation with the chosen answer, and with the rejected one; the masks are 1 on these answers."""
    chosen, rejected = (render_answer(tokenizer, pair["messages"], pair[side]) for side in ("chosen", "rejected"))
    return chosen, rejected


def _longest(tokenizer: Tokenizer, pair: Mapping) -> int:
    return max(len(side.ids) for side in rendered_pair(tokenizer, pair))


def _files(urls: tuple[str, ...]) -> list[str]:
    """Those that a person wrote: what is made by code is right."""
    return [url for url in urls if not url.startswith(generated.SCHEME)]


def _named(table: str, read: Callable[[], object]) -> None:
    try:
        read()
    except UserError as error:
        raise UserError(f"[{table}] {error}") from None
