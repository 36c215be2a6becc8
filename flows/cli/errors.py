"""How a command ends badly: one clear paragraph on stderr, the traceback in the log file.

Exit codes: 2 for a UserError, what the person gave (a recipe, a name, a number); 1 for what went wrong while working;
3 for a run that went through and whose version isn't the champion, with --require-champion; 130 after Ctrl-C, 143
after SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import textwrap
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import typer

from cluster.errors import UserError
from cluster.masking import masked
from flows import terminal


def paragraph(error: BaseException) -> str:
    """An exception as a person reads it."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    kind = type(error).__name__
    if not text.strip():
        text = f"{kind}."
    elif not isinstance(error, UserError):
        text = f"{kind}: {text}"
    text = masked(text.strip())  # before it is cut: half an address isn't known as one
    return text if len(text) <= 4000 else text[:4000] + " …"


def in_words(error: BaseException, place: str) -> str:
    """An exception as a person reads it; of a disk that takes no data, the path and what to do."""
    from flows.faults import disk_fault

    return (None if isinstance(error, UserError) else disk_fault(error, place)) or paragraph(error)


def is_a_bug(error: BaseException) -> bool:
    """Whether the fault is this code's: not the person's, nor the machine's, the network's or a service's."""
    from cluster.store import StoreError
    from cluster.store.folder import Corrupt
    from flows.faults import disk_fault, is_infrastructure_fault

    elsewhere = (UserError, OSError, MemoryError, ImportError, StoreError, Corrupt)
    return not isinstance(error, elsewhere) and not is_infrastructure_fault(error) and not disk_fault(error, "")


def report_it(log: Path | None) -> str:
    """What to do about a bug."""
    from cluster.provenance import code_version, repository

    where = f"an issue at {repository()}" if repository() else "the repository that you have tokenmill from"
    what = f" with {log}, which has the details" if log else ""
    return f"This is a bug in tokenmill {code_version()}. Please report it, in {where},{what}."


def say(text: str) -> None:
    """An error's text on stderr, wrapped where it is one paragraph."""
    width = max(40, min(terminal.Terminal(stderr=True).width, 110))
    shown = text if "\n" in text else textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
    terminal.say(shown)


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """For a command's first part: what the person gave wrongly ends it with code 2.

    A recipe asks already while it is read what it names: a source's store, the MLflow of a base, a package. Where these
    are missing or away, it ends with code 1.
    """
    try:
        yield
    except UserError as error:
        say(f"Error: {paragraph(error)}")
        raise typer.Exit(2) from None
    except Exception as error:
        if is_a_bug(error):
            raise
        say(f"Error: {in_words(error, str(Path.cwd()))}")
        raise typer.Exit(1) from None


class Ended(BaseException):
    """SIGTERM or SIGHUP came: what was begun is taken back on the way out."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within this SIGTERM and SIGHUP raise Ended, once: nothing then interrupts what cleans up."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.getsignal(number) for number in numbers}

    def end(number: int, _frame: FrameType | None) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)
        raise Ended(number)

    for number in numbers[:2]:
        if old[number] != signal.SIG_IGN:  # as `nohup` has SIGHUP
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def quietly() -> Iterator[terminal.Terminal]:
    """For the short commands: libraries' chatter goes to a file that is kept only if something goes wrong."""
    from flows.quiet import quiet

    with ended_by_signals(), _reported() as path, quiet(path) as console:
        try:
            yield console
        except (typer.Exit, KeyboardInterrupt, Ended):
            raise
        except BaseException:
            traceback.print_exc()  # to the log
            raise


@contextlib.contextmanager
def _reported() -> Iterator[Path]:
    """A log file; what ends the command is said on the screen, and the file goes if there is nothing more to it."""
    fd, name = tempfile.mkstemp(prefix="tokenmill-", suffix=".log")
    os.close(fd)
    path = Path(name)
    try:
        yield path
    except typer.Exit:
        path.unlink(missing_ok=True)
        raise
    except Ended as ended:
        path.unlink(missing_ok=True)
        raise typer.Exit(128 + ended.number) from None
    except KeyboardInterrupt:
        path.unlink(missing_ok=True)
        terminal.say("")
        raise typer.Exit(130) from None
    except UserError as error:
        path.unlink(missing_ok=True)
        say(f"Error: {paragraph(error)}")
        raise typer.Exit(2) from None
    except Exception as error:
        say(f"Error: {in_words(error, str(Path.cwd()))}")
        say(report_it(path) if is_a_bug(error) else f"The details are in {path}")
        raise typer.Exit(1) from None
    path.unlink(missing_ok=True)
