"""An imported model's own chat template: Jinja, rendered as `transformers` renders it, in Jinja's sandbox.

    messages ── template ──▶ text, with the names of special tokens ── encode(special=True) ──▶ ids
                └─ the assistants' parts of the text, for the loss

A template is another's program. It runs in an immutable sandbox, without private attributes, and reaches nothing.
Where it marks what assistants say ({% generation %}), that is what is learned; else the text is rendered once more with
marks around their messages, and what is learned begins where the prompt ends and ends with the token after a message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from cluster.errors import UserError

MARKS = 0xF0000  # of a private plane: the first begins what the first assistant says, the second ends it, and so on
QUOTE = (chr(0x10FFF0), chr(0x10FFF1))  # around a special token's name in a message
Messages = Sequence[Mapping[str, Any]]
Span = tuple[int, int]


class Text(NamedTuple):
    """A rendered conversation; quoted: its stretches that are a special token's name, and a person's words."""

    text: str
    quoted: list[Span]


class ChatTemplate:
    """A template and what it may ask for.

    Args:
        source: in Jinja.
        named: the special tokens' texts by their roles: {"bos_token": "<s>", …}.
        special: the names of all special tokens; in a message they are words.
    """

    def __init__(self, source: str, named: Mapping[str, str], special: Sequence[str]) -> None:
        self.source, self._named, self._special = source, dict(named), [name for name in special if name]

    def render(self, messages: Messages, prompt: bool = False) -> Text:
        """The text; prompt: with what stands before the next assistant's message.

        Raises:
            UserError: the template refuses the messages, or is broken.
        """
        for number, message in enumerate(messages):
            if any(ord(c) >= MARKS for c in message["content"]):
                raise UserError(f"Message {number} holds characters of a private plane of Unicode (U+F0000 and above).")
        text = self._render(messages, prompt)
        names = re.compile("|".join(map(re.escape, sorted(self._special, key=len, reverse=True))))
        if not self._special or not any(names.search(message["content"]) for message in messages):
            return Text(text, [])
        wrapped = [
            dict(m) | {"content": names.sub(lambda n: f"{QUOTE[0]}{n[0]}{QUOTE[1]}", m["content"])} for m in messages
        ]
        return Text(text, _between(self._render(wrapped, prompt), text, *QUOTE))

    def marked(self, messages: Messages) -> tuple[Text, list[Span]]:
        """The text, and what of its characters is learned: what assistants say, with the token that ends it.

        Raises:
            UserError: as `render`; or the template leaves no trace of a message.
        """
        rendered = self.render(messages)
        text = rendered.text
        if "endgeneration" in self.source:
            begin, end = _TrackedGeneration.begin, _TrackedGeneration.end
            return rendered, _between(self._render(messages, tracks=True), text, begin, end)
        assistants = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        wrapped = [dict(message) for message in messages]
        for number, i in enumerate(assistants):
            core = wrapped[i]["content"].strip()
            if core:
                begin, end = (chr(MARKS + 2 * number + k) for k in (0, 1))
                wrapped[i]["content"] = wrapped[i]["content"].replace(core, f"{begin}{core}{end}", 1)
        found = _places(self._render(wrapped), text)
        parts = [(found.get(2 * n), found.get(2 * n + 1)) for n in range(len(assistants))]
        return rendered, [self._span(text, messages, i, *part) for i, part in zip(assistants, parts, strict=True)]

    def _span(self, text: str, messages: Messages, i: int, begin: int | None, end: int | None) -> Span:
        """Of message `i`, seen from `begin` to `end`: from where its prompt ends to the special token after it."""
        before = self._render(messages[:i], prompt=True)
        if text.startswith(before):
            begin = len(before)
        elif end is not None:
            # The template writes earlier turns otherwise once there are later ones: look for the prompt's last words.
            opening = before.removeprefix(self._render(messages[:i]))
            at = text.rfind(opening, 0, begin if begin is not None else end) if opening else -1
            begin = at + len(opening) if at >= 0 else begin
        if begin is None or (end is None and messages[i]["content"].strip()):
            raise UserError(f"The model's chat template leaves out message {i}, the assistant's: it can't be learned.")
        end = begin if end is None else end
        return begin, self._end_after(text, end)[0]

    def _end_after(self, text: str, at: int) -> tuple[int, str | None]:
        """(the end of the first special token from `at` on, its name); without one (`at`, None)."""
        places = [(place, -len(name), name) for name in self._special if (place := text.find(name, at)) >= 0]
        if not places:
            return at, None
        place, _, name = min(places)
        return place + len(name), name

    def problem(self) -> str | None:
        """Why no plain conversation can be written by it, of a user and an assistant; None if one can."""
        asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            self.render(asked[:1], prompt=True)
            self.marked(asked)
        except UserError as error:
            return str(error)
        return None

    def turn_end(self) -> str | None:
        """The special token that ends an assistant's message; None: the template has none, or can't be used."""
        asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            (text, _), spans = self.marked(asked)
        except UserError:
            return None
        return next((name for name in self._special for _, end in spans if text[:end].endswith(name)), None)

    def _render(self, messages: Messages, prompt: bool = False, tracks: bool = False) -> str:
        try:
            template = compiled(self.source, tracks)
            given = [dict(message) for message in messages]
            return template.render(
                messages=given, tools=None, documents=None, add_generation_prompt=prompt, **self._named
            )
        except TemplateSyntaxError as error:
            raise UserError(f"The model's chat template is broken, in line {error.lineno}: {error.message}.") from None
        except (TemplateError, SecurityError) as error:
            raise UserError(f"The model's chat template refuses this: {error}") from None
        except UserError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise UserError(f"The model's chat template fails ({type(error).__name__}: {error}).") from None


class _Generation(Extension):
    """{% generation %}: what is within is what the assistant says; written as it is."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's protocol)
    begin = end = ""

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Any) -> str:
        return f"{self.begin}{caller()}{self.end}"


class _TrackedGeneration(_Generation):
    begin, end = chr(MARKS), chr(MARKS + 1)


class _Namespace(Namespace):
    """Jinja's, without names that lead into Python's insides."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        for name in dict(*args[1:], **kwargs):
            _check_name(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"A chat template may not name {name!r} in a namespace.")


@lru_cache(32)
def compiled(source: str, tracks: bool = False) -> Any:
    """The template with what `transformers` gives it: raise_exception, strftime_now, tojson, break and continue."""
    generation = _TrackedGeneration if tracks else _Generation
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": lambda *pairs, **named: dict(*pairs, **named),
        "namespace": _Namespace,
    }
    return environment.from_string(source)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own would escape what HTML takes for its own."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _places(marked: str, text: str) -> dict[int, int]:
    """Where each mark stands in the text without marks. Raises UserError unless that is `text`."""
    plain: list[str] = []
    found: dict[int, int] = {}
    for character in marked:
        if ord(character) >= MARKS:
            found[ord(character) - MARKS] = len(plain)
        else:
            plain.append(character)
    if "".join(plain) != text:
        raise UserError("The model's chat template changes what assistants say: which tokens are theirs is unknown.")
    return found


def _between(marked: str, text: str, begin: str, end: str) -> list[Span]:
    """The stretches of `text` that stand between these marks. Raises UserError unless it is `marked` without them."""
    spans: list[Span] = []
    plain = start = 0
    for character in marked:
        if character == begin:
            start = plain
        elif character == end:
            spans.append((start, plain))
        else:
            plain += 1
    _places(marked, text)
    return spans
