"""`tokenmill chat MODEL`: talk with a model in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.errors import UserError
from flows.cli.errors import quietly
from flows.cli.generate import BLOCK_LENGTH, MODEL, STEPS

HELP = "/exit ends, /reset begins anew, /help shows this."


def chat(
    model: Annotated[str, typer.Argument(help=MODEL)],
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens in an answer, at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep the likeliest tokens up to this mass.")] = 0.95,
    seed: Annotated[int, typer.Option(help="The same seed and messages give the same answers.")] = 0,
    steps: Annotated[int, typer.Option(min=0, help=STEPS)] = 0,
    block_length: Annotated[int, typer.Option(min=0, help=BLOCK_LENGTH)] = 0,
) -> None:
    """Chat with a model; answers appear as they are generated. /exit, Ctrl-D or Ctrl-C ends."""
    import sys

    with quietly() as console:
        from cluster.serve.generator import Generator, unmasking_of

        out = console.file
        generator = Generator.load(model)
        first = [{"role": "system", "content": system}] if system else []
        messages = list(first)
        out.write(f"{model}. {HELP}\n")
        while True:
            out.write("\n> ")
            out.flush()
            line = sys.stdin.readline()
            if not line or line.strip() in ("/exit", "/quit"):
                break
            text = line.strip()
            if text == "/reset":
                messages = list(first)
                continue
            if text.startswith("/"):
                out.write(f"{HELP}\n")
                continue
            if not text:
                continue
            messages.append({"role": "user", "content": text})
            answer = ""
            try:
                for piece in generator.stream(
                    messages,
                    max_new_tokens=max_tokens,
                    temperature=temperature,
                    top_p=top_p,
                    seed=seed + len(messages),
                    unmasking=unmasking_of(steps, block_length),
                ):
                    answer += piece
                    out.write(piece)
                    out.flush()
            except UserError as error:  # the conversation has outgrown the context
                messages.pop()
                out.write(f"{error} /reset begins anew.\n")
                continue
            out.write("\n")
            messages.append({"role": "assistant", "content": answer})
        out.write("\n")
