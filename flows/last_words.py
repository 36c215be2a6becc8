"""What is said of a run whose process ends without a word: kill -9, memory that ran out, Ray's C++ that ends it.

    the run ── text ─▶ pipe ─▶ a small process of its own, with the run's screen
            ── done ─▶              says nothing
            ── end of the pipe ─▶   says the text, and ends what the run had started and didn't end with it

Ray ends its driver by `_exit(1)` where its cluster's head is away for a minute, and where its raylet goes while the
driver reads its shared memory; nothing of Python's runs then. Ray's agents then look for their head for two minutes
more. What a run has started is known by a mark in its environment, which is this run's own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.run import Run

DONE = b"\0"
SHOW_CURSOR = b"\x1b[?25h"
MARK = "TOKENMILL_RUN"  # a variable that whatever this run starts inherits
GRACE_SECONDS = 6.0  # for what ends by itself: Prefect's embedded API takes up to four


@contextlib.contextmanager
def said(run: Run) -> Iterator[None]:
    """Should this process end within this, the run's screen has the words, and nothing of the run lives on."""
    mark = secrets.token_hex(16)
    try:
        screen = run.screen.console.file.fileno()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).resolve()), mark],
            stdin=subprocess.PIPE,
            stdout=screen,
            start_new_session=True,  # a terminal's Ctrl-C is the run's
        )
    except OSError:  # no process can be made, or the screen has no descriptor: then it is not said
        yield
        return
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(words(run).encode())
        process.stdin.flush()
    os.environ[MARK] = mark
    try:
        yield
    finally:
        os.environ.pop(MARK, None)
        with contextlib.suppress(OSError):
            process.stdin.write(DONE)
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


def words(run: Run) -> str:
    """What there is to say, with the command to go on."""
    from cluster.outside import plain
    from flows.commands import again

    details = f" The end of {run.log} may say why." if run.log else ""
    return plain(
        "\nThe run's process has ended without a word: it was killed (which is also what the system does when memory "
        f"runs out), or Ray ended it because a part of its cluster was lost.{details}\n"
        f"What is done is kept; the same command resumes:\n  {again(run)}\n"
    )


def _wait(mark: str) -> None:
    """The small process; it needs nothing of ours."""
    text = sys.stdin.buffer.read()
    if text.endswith(DONE):
        return
    shown = SHOW_CURSOR if sys.stdout.isatty() else b""  # which a bar had hidden
    with contextlib.suppress(OSError):
        sys.stdout.buffer.write(shown + text)
        sys.stdout.buffer.flush()
        sys.stdout.close()  # whoever reads the screen need not wait for the rest
    time.sleep(GRACE_SECONDS)
    while _end_marked(f"{MARK}={mark}".encode()):
        time.sleep(1)


def _end_marked(mark: bytes) -> int:
    """Kill the processes whose environment has the mark; how many there were. (On Linux; elsewhere none are known.)"""
    ended = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            process = os.pidfd_open(int(folder.name))  # the number may be another's by the time of the signal
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    ended += 1
            finally:
                os.close(process)
    return ended


if __name__ == "__main__":
    _wait(sys.argv[1])
