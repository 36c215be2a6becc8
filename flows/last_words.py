"""What is said of a run whose process ends without a word: kill -9, memory that ran out, Ray's C++ that ends it.

    the run ── text ─▶ pipe ─▶ a small process of its own, with the run's screen
            ── done ─▶              says nothing
            ── end of the pipe ─▶   says the text

Ray ends its driver by `_exit(1)` where its cluster's head is away for a minute, and where its raylet goes while the
driver reads its shared memory; nothing of Python's runs then.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.run import Run

DONE = b"\0"
SHOW_CURSOR = b"\x1b[?25h"


@contextlib.contextmanager
def said(run: Run) -> Iterator[None]:
    """Should this process end within this, the run's screen has the words."""
    try:
        screen = run.screen.console.file.fileno()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).resolve())],
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
    try:
        yield
    finally:
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


def _wait() -> None:
    """The small process; it needs nothing of ours."""
    text = sys.stdin.buffer.read()
    if not text.endswith(DONE):
        shown = SHOW_CURSOR if sys.stdout.isatty() else b""  # which a bar had hidden
        with contextlib.suppress(OSError):
            sys.stdout.buffer.write(shown + text)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    _wait()
