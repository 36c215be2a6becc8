"""All that reaches the terminal: through a `Screen` console, or `say`. Nobody else prints.

Text is shown as it is written (cluster/outside.py): no escape sequence of a model, a file or a name gets through, no
`[red]` in it is markup, no secret is in it. Where output is a pipe, what a model generates is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from cluster.outside import plain, visible


class Terminal(Console):
    """A rich console on which every text is just text, also what tables and bars are made of."""

    def __init__(self, file: IO[str] | None = None, width: int | None = None, stderr: bool = False):
        super().__init__(file=file, width=width, stderr=stderr, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text), **{**options, "markup": False, "emoji": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, Text) and (shown := plain(renderable.plain)) != renderable.plain:
            renderable = Text(shown, style=renderable.style, justify=renderable.justify, overflow=renderable.overflow)
        for segment in super().render(renderable, options):
            text, style, control = segment
            if control or text == visible(text):
                yield segment
            else:
                yield Segment(visible(text), style, control)


def say(text: str, err: bool = True) -> None:
    """A line on stderr, or on stdout."""
    typer.echo(plain(text), err=err)


def generated(text: str, stream: Any) -> str:
    """What a model wrote, for a stream: on a terminal with control characters written out, in a pipe as it is."""
    return visible(text) if stream.isatty() else text
