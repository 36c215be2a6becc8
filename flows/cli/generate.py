"""`tokenmill generate MODEL PROMPT`: complete a text."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.decoding import decoded
from flows.cli.errors import quietly
from flows.streams import reader_left
from model.generate.decoding import TEXT, Decoding

MODEL = "models:/NAME@ALIAS, models:/NAME/VERSION, or a model's folder."


@decoded(TEXT)
def generate(
    model: Annotated[str, typer.Argument(help=MODEL)],
    prompt: Annotated[str, typer.Argument(help="The text to complete; - reads it from standard input.")],
    decoding: Decoding,
) -> None:
    """Complete a text with a model."""
    import sys

    with quietly() as console:
        if prompt == "-":
            prompt = sys.stdin.read()
        from cluster.serve.generator import Generator

        generator = Generator.load(model)
        generator.say = lambda text: print(text, file=sys.stderr)
        pieces = generator.stream(prompt, decoding)
        console.file.write(prompt)
        for piece in pieces:
            console.file.write(piece)
            console.file.flush()
            if reader_left(console.file):
                return
        console.file.write("\n")
