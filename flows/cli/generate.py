"""`tokenmill generate MODEL PROMPT`: complete a text."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.errors import quietly

MODEL = "models:/NAME@ALIAS, models:/NAME/VERSION, or a model's folder."
STEPS = "Of a diffusion model: forward passes for the whole text; 0: one for each token."
BLOCK_LENGTH = "Of a diffusion model: tokens that are filled in before later ones; 0: all at once."


def generate(
    model: Annotated[str, typer.Argument(help=MODEL)],
    prompt: Annotated[str, typer.Argument(help="The text to complete; - reads it from standard input.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate, at most.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep the likeliest tokens up to this mass.")] = 0.95,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    steps: Annotated[int, typer.Option(min=0, help=STEPS)] = 0,
    block_length: Annotated[int, typer.Option(min=0, help=BLOCK_LENGTH)] = 0,
) -> None:
    """Complete a text with a model."""
    import sys

    with quietly() as console:
        if prompt == "-":
            prompt = sys.stdin.read()
        from cluster.serve.generator import Generator, unmasking_of

        pieces = Generator.load(model).stream(
            prompt,
            max_new_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            unmasking=unmasking_of(steps, block_length),
        )
        console.file.write(prompt)
        for piece in pieces:
            console.file.write(piece)
            console.file.flush()
        console.file.write("\n")
