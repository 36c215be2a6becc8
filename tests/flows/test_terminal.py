"""No escape sequence, no markup and no secret of what is shown reaches the terminal."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from flows import closing, streams, terminal
from flows.quiet import quiet
from flows.show import Bars, Screen
from flows.terminal import Terminal, generated

HOSTILE = "\x1b]0;owned\x1b[31m\x9b2J\u202e[red]x[/red]:boom: http://ann:Zq7-planted@host"
WRITTEN_OUT = "\\x1b]0;owned\\x1b[31m\\x9b2J\\u202e[red]x[/red]:boom:"
RICHS_OWN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # styles and the cursor's moves of the bar


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(write: object, width: int = 400, tty: bool = True) -> str:
    """What a terminal gets, without rich's own sequences."""
    screen = Tty() if tty else io.StringIO()
    write(Terminal(file=screen, width=width))  # type: ignore[operator]
    return RICHS_OWN.sub("", screen.getvalue())


def harmless(text: str) -> bool:
    steering = [c for c in text if (ord(c) < 32 and c not in "\n\r") or 0x7F <= ord(c) < 0xA0 or c == "\u202e"]
    return not steering and "planted" not in text and "\\x1b]0;owned\\x1b[31m\\x9b2J\\u202e[red]x[/red]:boom:" in text


def in_a_table(console: Terminal) -> None:
    table = Table(title=HOSTILE, box=None)
    table.add_column(HOSTILE, overflow="fold")
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    console.print(table)


def in_a_bar(console: Terminal) -> None:
    with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
        progress.add_task(HOSTILE, total=1)


def on_the_screen(console: Terminal) -> None:
    (Bars if console.is_terminal else Screen)(console).line(HOSTILE, "red")


def in_a_table_of_ours(console: Terminal) -> None:
    table = closing.plain_table(HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    closing.put(table, console)


@pytest.mark.parametrize("tty", [True, False])
@pytest.mark.parametrize(
    "write",
    [
        lambda console: console.print(HOSTILE),
        lambda console: console.print(HOSTILE, markup=True, soft_wrap=True),
        lambda console: console.print(Text(HOSTILE, style="bold"), soft_wrap=True),
        in_a_table,
        in_a_bar,
        on_the_screen,
        in_a_table_of_ours,
    ],
)
def test_a_text_is_only_text(write: object, tty: bool) -> None:
    assert harmless(shown(write, tty=tty))


def test_a_secret_that_a_table_folds_is_masked_before() -> None:
    def folded(console: Terminal) -> None:
        table = Table(box=None, show_header=False)
        table.add_column("", overflow="fold", width=12)
        table.add_row("at http://ann:Zq7-planted-and-long@host")
        console.print(table)

    assert "".join(shown(folded).split()) == "athttp://***@host"


def test_a_models_text_is_written_out_on_a_terminal_and_is_itself_in_a_pipe() -> None:
    text = "a\x1b[2Jb\ttab\nline\u202e"
    assert generated(text, Tty()) == "a\\x1b[2Jb\ttab\nline\\u202e"
    assert generated(text, io.StringIO()) == text


def test_what_python_and_typer_say_on_stderr_is_only_text(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    streams.prepare()
    sys.stderr.write(f"Error: no such option {HOSTILE}\n")
    terminal.say(HOSTILE)
    assert harmless(err.getvalue())


def test_the_log_file_is_only_text(tmp_path: Path) -> None:
    """A person reads it with `cat`."""
    with quiet(tmp_path / "log"):
        print(HOSTILE)
        sys.stderr.write("half a line, ")
        sys.stderr.write("and its end\n")
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert harmless(text)
    assert "half a line, and its end\n" in text
