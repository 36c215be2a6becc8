"""How a command ends badly: one clear paragraph on stderr, the traceback in the log file.

Exit codes: 2 for what the person gave (a recipe, a name, a number), 1 for what went wrong while working,
130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console

BAD_INPUT = (ValueError, LookupError, FileNotFoundError, NotADirectoryError, PermissionError)


def paragraph(error: BaseException) -> str:
    """An exception as a person reads it."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    kind = type(error).__name__
    if not text.strip():
        text = f"{kind}."
    elif not isinstance(error, BAD_INPUT):
        text = f"{kind}: {text}"
    text = text.strip()
    return text if len(text) <= 4000 else text[:4000] + " …"


def say(text: str) -> None:
    """An error's text on stderr, wrapped where it is one paragraph."""
    width = max(40, min(Console(stderr=True).width, 110))
    shown = text if "\n" in text else textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
    typer.echo(shown, err=True)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """For a command's first part: what the person gave wrongly ends it with code 2."""
    try:
        yield
    except BAD_INPUT as error:
        say(f"Error: {paragraph(error)}")
        raise typer.Exit(2) from None


@contextlib.contextmanager
def quietly() -> Iterator[Console]:
    """For the short commands: libraries' chatter goes to a file that is kept only if something goes wrong."""
    from flows.quiet import quiet

    fd, name = tempfile.mkstemp(prefix="tokenmill-", suffix=".log")
    os.close(fd)
    path = Path(name)
    try:
        with quiet(path) as console:
            try:
                yield console
            except (typer.Exit, KeyboardInterrupt):
                raise
            except BaseException:
                traceback.print_exc()  # to the log
                raise
    except typer.Exit:
        path.unlink(missing_ok=True)
        raise
    except KeyboardInterrupt:
        path.unlink(missing_ok=True)
        sys.stderr.write("\n")
        raise typer.Exit(130) from None
    except BAD_INPUT as error:
        path.unlink(missing_ok=True)
        say(f"Error: {paragraph(error)}")
        raise typer.Exit(2) from None
    except Exception as error:
        say(f"Error: {paragraph(error)}")
        say(f"The details are in {path}")
        raise typer.Exit(1) from None
    path.unlink(missing_ok=True)
