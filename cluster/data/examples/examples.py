"""Chat examples, tasks, choices and preferences: from JSON-lines files anywhere, or from `generated://…`.

    chat        {"messages": [{"role", "content"}, …, the assistant's]}
    task        {"messages": […, the user's] | "prompt": str, "answer", "verifier"}            see cluster/verify
    choice      {"messages": […, the user's] | "prompt": str, "choices": [str, …], "answer": index}
    preference  {"messages": […, the user's], "chosen": str, "rejected": str}

Every record is checked where it is read, so a wrong one is named by its file and line before any training starts; so is
one that a model's context doesn't hold (lengths.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cluster.data.examples import generated
from cluster.data.tokenizer.chat import check_messages, render_prompt
from cluster.errors import UserError
from cluster.verify.verifiers import check_task

if TYPE_CHECKING:
    from cluster.data.tokenizer.tokenizer import Tokenizer

MAX_LINE = 16 << 20  # bytes
Example = dict[str, Any]
Check = Callable[[Mapping], None]  # raises UserError for an example that can't be used


def read_chat(urls: str | Iterable[str], limit: int | None = None) -> list[Example]:
    """Chat examples of all `urls`, in their order; at most `limit` of each. Raises ValueError for a wrong one."""
    return _read(urls, limit, _chat, generated.chat_examples)


def read_tasks(urls: str | Iterable[str], limit: int | None = None, fits: Check | None = None) -> list[Example]:
    """Verifiable tasks, see `read_chat`. fits: see lengths.py; what it refuses is named by its file and line too."""
    return _read(urls, limit, _task, generated.tasks, fits)


def read_choices(urls: str | Iterable[str], limit: int | None = None, fits: Check | None = None) -> list[Example]:
    """Multiple-choice items, see `read_tasks`."""
    return _read(urls, limit, _choice, generated.choices, fits)


def read_preferences(urls: str | Iterable[str], limit: int | None = None) -> list[Example]:
    """Preference pairs, see `read_chat`."""
    return _read(urls, limit, _preference, generated.preferences)


def digest(url: str) -> str:
    """What is behind an address now; it changes when any of its examples can."""
    if url.startswith(generated.SCHEME):
        return generated.digest(url)
    from cluster.store.source import digest_source

    return digest_source(url)


def prompt_ids(tokenizer: Tokenizer, example: Mapping) -> list[int]:
    """The ids after which a task's answer or a choice begins: the conversation's, or the plain prompt's."""
    if "messages" in example:
        return render_prompt(tokenizer, example["messages"])
    return tokenizer.encode(example["prompt"], bos=True)


def _read(
    urls: str | Iterable[str],
    limit: int | None,
    check: Check,
    generate: Callable[[str], list[Example]],
    fits: Check | None = None,
) -> list[Example]:
    found: list[Example] = []
    for url in [urls] if isinstance(urls, str) else urls:
        if url.startswith(generated.SCHEME):
            made = generate(url)[:limit]
            for number, example in enumerate(made, start=1):
                _checked(f"{url}, number {number}", example, fits)
            found += made
            continue
        before = len(found)
        for where, example in itertools.islice(_records(url), limit):
            _checked(where, example, check, fits)
            found.append(example)
        if len(found) == before:
            raise UserError(f"{url}: there is no example in it. It must have one JSON object a line.")
    return found


def _checked(where: str, example: Example, *checks: Check | None) -> None:
    try:
        for check in checks:
            if check:
                check(example)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _records(url: str) -> Iterator[tuple[str, Example]]:
    """(file:line, object) for each line of each file, or each element of an array; empty lines are passed over."""
    from cluster.data.readers.chunks import Chunks
    from cluster.data.readers.json_values import BOM, parse, values
    from cluster.data.readers.reading import kind_of
    from cluster.store.source import expand, open_binary

    files = expand(url)
    if not files:
        raise UserError(f"{url}: no such file. Give a JSON-lines file, a glob, s3://… or generated://…")
    for file in files:
        with open_binary(file.url) as stream:
            for line in values(Chunks(stream, kind_of(file.name)[1]), MAX_LINE):
                where = f"{file.url}:{line.number}"
                if line.problem:
                    raise UserError(f"{where}: the line can't be read: {line.problem.replace('_', ' ')}.")
                if not line.data.strip():
                    continue
                try:
                    example = parse(line.data.removeprefix(BOM))
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{where}: no JSON object: {error}.") from None
                if not isinstance(example, dict):
                    raise UserError(f"{where}: must be a JSON object, not {line.data[:60]!r}.")
                yield where, example


def _chat(example: Mapping) -> None:
    check_messages(example.get("messages"))
    if all(message["role"] != "assistant" for message in example["messages"]):
        raise UserError("A chat example needs an assistant's message to learn from.")


def _asked(example: Mapping, prompt_allowed: bool = True) -> None:
    if prompt_allowed and "messages" not in example:
        if not isinstance(example.get("prompt"), str):
            raise UserError('It needs "messages", or a "prompt" that is a string.')
        return
    check_messages(example.get("messages"))
    if example["messages"][-1]["role"] != "user":
        raise UserError('"messages" must end with the user\'s message.')


def _task(example: Mapping) -> None:
    _asked(example)
    check_task(example)


def _choice(example: Mapping) -> None:
    _asked(example)
    choices, answer = example.get("choices"), example.get("answer")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise UserError('"choices" must be a list of at least two strings.')
    if any("\ud800" <= c <= "\udfff" for choice in choices for c in choice):
        raise UserError('"choices" has half a surrogate pair, such as "\\ud83d", which is no text.')
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise UserError(f'"answer" must be the index of the right choice, 0 to {len(choices) - 1}, not {answer!r}.')


def _preference(example: Mapping) -> None:
    _asked(example, prompt_allowed=False)
    for name in ("chosen", "rejected"):
        if not isinstance(example.get(name), str):
            raise UserError(f'"{name}" must be a string, not {example.get(name)!r}.')
