"""A prompt in a model's context: whole turns are left out of a chat that outgrows it, and it is said; none is cut.

    system  user  assistant  user  assistant  user        the next answer's prompt
    system  ~~~~~~~~~~~~~~~  user  assistant  user        the oldest turns go, the system message stays

A text that is to be completed has no turns: of one too long its end is kept, which is said too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cluster.data.tokenizer.chat import render_prompt
from cluster.errors import UserError

if TYPE_CHECKING:
    from cluster.data.tokenizer.tokenizer import Tokenizer

Message = Mapping[str, Any]  # {"role": "system" | "user" | "assistant", "content": text}
Prompt = str | Sequence[Message]
ANSWER = 1  # token that must fit after a prompt


class Outgrown(UserError):
    """The last message of a conversation leaves no room for an answer."""


def fit(tokenizer: Tokenizer, prompt: Prompt, context: int, max_new_tokens: int) -> tuple[list[int], str]:
    """(the prompt's ids, what was left out of it in a sentence, "" for nothing).

    They leave room for `max_new_tokens`, or for half of the context where that is less. Raises Outgrown for a last
    message that leaves no room for an answer, even alone with the system message.
    """
    room = max(1, context - min(max_new_tokens, context // 2))
    return (_text if isinstance(prompt, str) else _chat)(tokenizer, prompt, context, room)  # type: ignore[operator]


def check_prompt(tokenizer: Tokenizer, prompt: Prompt, context: int, max_new_tokens: int) -> None:
    """Raises UserError for a prompt of which anything would be left out."""
    _, said = fit(tokenizer, prompt, context, max_new_tokens)
    if said:
        raise UserError(f"{said} Shorten it, or give the model a longer context (model.max_seq_len).")


def _text(tokenizer: Tokenizer, text: str, context: int, room: int) -> tuple[list[int], str]:
    ids = tokenizer.encode(text, bos=True)
    if len(ids) <= room:
        return ids, ""
    first = ids[: min(room - 1, 1)] if tokenizer.adds_bos else []
    kept = [*first, *ids[len(ids) - room + len(first) :]]
    return kept, (
        f"The text has {len(ids)} tokens, and the context is {context}: without its first {len(ids) - len(kept)}, "
        "it leaves room for what follows."
    )


def _chat(tokenizer: Tokenizer, messages: Sequence[Message], context: int, room: int) -> tuple[list[int], str]:
    ids = render_prompt(tokenizer, messages)
    if len(ids) <= room:
        return ids, ""
    system = [m for m in messages[:1] if m["role"] == "system"]
    turns = list(range(len(system), len(messages), 2))  # each begins with a user's message

    def without(left_out: int) -> list[int]:
        return render_prompt(tokenizer, [*system, *messages[turns[left_out] :]])

    most = len(turns) - 1  # the last message is what is asked
    left_out = min(most, bisect_left(range(len(turns)), True, key=lambda n: len(without(n)) <= room))
    ids = without(left_out)
    if len(ids) > context - ANSWER:
        beside = " with the system message" if system else ""
        raise Outgrown(
            f"The last message{beside} has {len(ids)} tokens, but the model's context is {context}, and no message is "
            "cut: shorten it."
        )
    turn = "turn is" if left_out == 1 else "turns are"
    return ids, (
        f"The conversation outgrows the model's context of {context} tokens: its first {left_out} {turn} left out."
        if left_out
        else ""
    )
