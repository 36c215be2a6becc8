"""`tokenmill chat MODEL`: talk with a model in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.outside import plain
from flows.cli.decoding import decoded
from flows.cli.errors import quietly
from flows.cli.generate import MODEL
from flows.streams import reader_left
from flows.terminal import generated
from model.generate.decoding import CHAT, Decoding

HELP = "/exit ends, /reset begins anew, /help shows this; // begins a message that begins with /."


@decoded(CHAT)
def chat(
    model: Annotated[str, typer.Argument(help=MODEL)],
    decoding: Decoding,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
) -> None:
    """Chat with a model; answers appear as they are generated. /exit, Ctrl-D or Ctrl-C ends.

    On a terminal, control characters that the model writes are shown as \\x1b; a file or a pipe gets its text as it is.
    """
    import sys

    with quietly() as console:
        from cluster.serve.context import Outgrown
        from cluster.serve.generator import Generator

        out = console.file
        generator = Generator.load(model)
        generator.say = lambda text: out.write(plain(f"({text})\n"))
        first = [{"role": "system", "content": system}] if system else []
        messages = list(first)
        out.write(plain(f"{model}. {HELP}\n"))
        while True:
            out.write("\n> ")
            out.flush()
            if reader_left(out):
                break
            line = sys.stdin.readline()
            if not line or line.strip() in ("/exit", "/quit"):
                break
            text = line.strip()
            if text == "/reset":
                messages = list(first)
                continue
            if text.startswith("//"):
                text = text[1:]
            elif text.startswith("/"):
                out.write(plain(f"{HELP}\n"))
                continue
            if not text:
                continue
            messages.append({"role": "user", "content": text})
            answer = ""
            try:
                seed = decoding.seed + len(messages)  # the same words again are answered anew
                for piece in generator.stream(messages, decoding, seed=seed):
                    answer += piece
                    out.write(generated(piece, out))
                    out.flush()
            except Outgrown as error:
                messages.pop()
                out.write(plain(f"{error}\n"))
                continue
            out.write("\n")
            if generator.last and (decoding.method or decoding.top_logprobs):
                for line in (*generator.last.table(generator.piece), generator.last.words()):
                    out.write(plain(f"{line}\n"))
            messages.append({"role": "assistant", "content": answer})
        out.write("\n")
