"""`tokenmill generate MODEL PROMPT`: complete a text."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.decoding import decoded
from flows.cli.errors import quietly
from flows.streams import reader_left
from flows.terminal import generated, say
from model.generate.decoding import TEXT, Decoding

MODEL = "models:/NAME@ALIAS, models:/NAME/VERSION, or a model's folder."


@decoded(TEXT)
def generate(
    model: Annotated[str, typer.Argument(help=MODEL)],
    prompt: Annotated[str, typer.Argument(help="The text to complete; - reads it from standard input.")],
    decoding: Decoding,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the answer, its tokens' ids and its figures as JSON, and nothing else."),
    ] = False,
) -> None:
    """Complete a text with a model. On stderr: how many tokens and steps it took, and what it left out of the prompt.

    On a terminal, control characters that it writes are shown as \\x1b; a file or a pipe gets its text as it is.
    """
    import json
    import sys

    lines: list[str] = []  # for stderr, which is the log's until the end
    with quietly() as console:
        if prompt == "-":
            prompt = sys.stdin.read()
        from cluster.serve.generator import Generator

        generator = Generator.load(model)
        generator.say = lines.append
        if as_json:
            (answer,) = generator.answers([prompt], decoding)
            written = json.dumps(answer.report(generator.piece), ensure_ascii=False)
            console.file.write(generated(written, console.file))
        else:
            pieces = generator.stream(prompt, decoding)
            console.file.write(generated(prompt, console.file))
            for piece in pieces:
                console.file.write(generated(piece, console.file))
                console.file.flush()
                if reader_left(console.file):
                    return
            if generator.last:
                lines += [*generator.last.table(generator.piece), generator.last.words()]
        console.file.write("\n")
    for line in lines:
        say(line)
