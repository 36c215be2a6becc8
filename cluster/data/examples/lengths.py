"""Whether a model's context holds an example: measured when it is read, so that none is cut, or fails after training.

read_tasks(url, fits=task_fits(tokenizer, context))       tasks.jsonl:2: the prompt has 300 tokens, …
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cluster.data.examples.examples import Check, prompt_ids
from cluster.errors import UserError

if TYPE_CHECKING:
    from cluster.data.tokenizer.tokenizer import Tokenizer

ANSWER = 1  # token that must fit after a prompt


def choice_ids(tokenizer: Tokenizer, item: Mapping, choice: str) -> tuple[list[int], int]:
    """(ids of a choice after its prompt, how many of them are the prompt's). In a chat the choice ends its turn."""
    prompt = prompt_ids(tokenizer, item)
    return prompt + tokenizer.encode(choice) + ([tokenizer.end_id] if "messages" in item else []), len(prompt)


def task_fits(tokenizer: Tokenizer, context: int) -> Check:
    """Raises UserError for a prompt that leaves no room for an answer in `context` tokens."""

    def fits(item: Mapping) -> None:
        ids = prompt_ids(tokenizer, item)
        _begun(ids)
        _within(len(ids), context - ANSWER, context, "the prompt has")

    return fits


def choice_fits(tokenizer: Tokenizer, context: int) -> Check:
    """Raises UserError for an item one of whose choices doesn't fit behind the prompt in `context` tokens."""

    def fits(item: Mapping) -> None:
        for number, choice in enumerate(item["choices"]):
            ids, prompt = choice_ids(tokenizer, item, choice)
            _begun(ids[:prompt])
            _within(len(ids), context, context, f"the prompt and choice {number} have")

    return fits


def _begun(prompt: list[int]) -> None:
    if not prompt:
        raise UserError(
            "the prompt is empty, and this tokenizer begins a text with no token of its own: ask something."
        )


def _within(tokens: int, most: int, context: int, what: str) -> None:
    if tokens > most:
        raise UserError(
            f"{what} {tokens} tokens, but the model's context (model.max_seq_len) is {context}, and nothing is cut: "
            "shorten it, leave it out, or give the model a longer context."
        )
