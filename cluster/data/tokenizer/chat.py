"""The chat template: conversations as ids, and back.

    <s> <|system|> content <|end|> <|user|> content <|end|> <|assistant|> content <|end|> <|user|> …
                                                                          ^^^^^^^^^^^^^^^ loss only here

The role tokens are ids that no text can produce (tokenizer.py), so a message can't end its own turn or start another.
Nothing, not even a space, stands between a role and its content: a prompt ends with <|assistant|>, and what the model
writes until <|end|> is the message. The system message is optional; users and assistants take turns.

An imported model has its own template (template.py), and `render` and `render_prompt` write conversations by that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.errors import UserError

if TYPE_CHECKING:
    from cluster.data.tokenizer.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")
Messages = Sequence[Mapping[str, Any]]


class Rendered(NamedTuple):
    """A conversation as ids; mask is 1 on the assistants' tokens and the <|end|> after them, else 0."""

    ids: list[int]
    mask: list[int]


def render(tokenizer: Tokenizer, messages: Messages) -> Rendered:
    """A whole conversation. Raises ValueError for messages that don't follow the template."""
    if tokenizer.template is not None:
        check_form(messages)
        rendered, said = tokenizer.template.marked(messages)
        ids, spans = tokenizer.encode_rendered(*rendered)
        return Rendered(ids, [int(any(b < end and e > begin for begin, end in said)) for b, e in spans])
    check_messages(messages)
    check_own(tokenizer)
    ids, mask = [tokenizer.bos_id], [0]
    for message in messages:
        content = [*tokenizer.encode(message["content"]), tokenizer.end_id]
        ids += [tokenizer.special[f"<|{message['role']}|>"], *content]
        mask += [0] + [int(message["role"] == "assistant")] * len(content)
    return Rendered(ids, mask)


def render_answer(tokenizer: Tokenizer, messages: Messages, answer: str) -> Rendered:
    """A conversation with this answer at its end; mask is 1 on the answer and its <|end|> alone.

    What stands before it may differ from `render_prompt`: others' templates write a prompt otherwise once there is an
    answer, and the prompt's last token may be one with the answer's first.
    """
    ids, mask = render(tokenizer, [*messages, {"role": "assistant", "content": answer}])
    stop = next((i + 1 for i in reversed(range(len(mask))) if mask[i]), 0)
    start = next((i + 1 for i in reversed(range(stop)) if not mask[i]), 0)
    return Rendered(ids, [int(start <= i < stop) for i in range(len(mask))])


def render_prompt(tokenizer: Tokenizer, messages: Messages) -> list[int]:
    """The ids after which the model writes the next assistant's message; messages end with the user's."""
    (check_messages if tokenizer.template is None else check_form)(messages)
    if messages[-1]["role"] != "user":
        raise UserError(f"A prompt must end with the user's message, not with the {messages[-1]['role']}'s.")
    if tokenizer.template is not None:
        return tokenizer.encode_rendered(*tokenizer.template.render(messages, prompt=True))[0]
    return [*render(tokenizer, messages).ids, tokenizer.special["<|assistant|>"]]


def parse(tokenizer: Tokenizer, ids: Iterable[int]) -> list[dict[str, str]]:
    """The messages of rendered ids; one that is cut off before its <|end|> is given as far as it goes.

    Raises:
        ValueError: text outside a message.
    """
    roles = {tokenizer.special[f"<|{role}|>"]: role for role in ROLES}
    messages: list[dict[str, str]] = []
    role: str | None = None
    content: list[int] = []
    for i in [*map(int, ids), tokenizer.end_id]:
        if i in roles or i == tokenizer.end_id:
            if role is not None:
                messages.append({"role": role, "content": tokenizer.decode(content)})
            elif content:
                raise ValueError(f"Text outside a message: {tokenizer.decode(content)[:80]!r}.")
            role, content = roles.get(i), []
        elif i not in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id):
            content.append(i)
    return messages


def chats(tokenizer: Tokenizer) -> bool:
    """Whether a conversation can be written: by an imported model's own template, or with our roles."""
    return tokenizer.template is not None or f"<|{ROLES[0]}|>" in tokenizer.special


def check_own(tokenizer: Tokenizer) -> None:
    """Raises UserError for an imported model's tokenizer, which has not our roles."""
    if not chats(tokenizer):
        raise UserError(
            "This model was imported without a chat template and has no roles to chat in: complete text with it."
        )


def check_form(messages: Any) -> None:
    """Raises UserError, with what is wrong and where, unless `messages` is a list of them; turns are a template's."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f'"messages" must be a list of at least one message, not {str(messages)[:80]!r}.')
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise UserError(f'Message {number} must be {{"role": …, "content": "text"}}, not {str(message)[:80]!r}.')
        if not isinstance(message.get("role"), str):
            raise UserError(f'Message {number} must be {{"role": …, "content": "text"}}, not {str(message)[:80]!r}.')


def check_messages(messages: Any) -> None:
    """Raises UserError, with what is wrong and where, unless `messages` is a conversation as our template has it."""
    check_form(messages)
    expected: tuple[str, ...] = ("system", "user")
    for number, message in enumerate(messages):
        if message.get("role") not in expected:
            raise UserError(
                f"Message {number} has the role {message.get('role')!r}; here comes {' or '.join(expected)}: "
                "an optional system message, then user and assistant in turn."
            )
        expected = ("assistant",) if message["role"] == "user" else ("user",)
