"""What is said of a run whose process ends without a word: kill -9, memory that ran out, Ray's C++ that ends it.

    the run ── text ─▶ pipe ─▶ a small process of its own, with the run's screen
            ── done ─▶              says nothing
            ── end of the pipe ─▶   says the text, and ends what the run had started and didn't end with it

Ray ends its driver by `_exit(1)` where its cluster's head is away for a minute, and where its raylet goes while the
driver reads its shared memory; nothing of Python's runs then. Ray's agents then look for their head for two minutes
more. They are known by descent, looked at while the run lives: they write their names over their environments.
"""

from __future__ import annotations

import contextlib
import os
import select
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
LOOK_SECONDS = 3.0  # between two looks at what the run has started
GRACE_SECONDS = 6.0  # for what ends by itself: Prefect's embedded API takes up to four


@contextlib.contextmanager
def said(run: Run) -> Iterator[None]:
    """Should this process end within this, the run's screen has the words, and nothing of the run lives on."""
    try:
        screen = run.screen.console.file.fileno()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(os.getpid())],
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


def _wait(run: int) -> None:
    """The small process; it needs nothing of ours."""
    text, started = b"", {}
    while True:
        if select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
            part = os.read(sys.stdin.fileno(), 1 << 16)
            text += part
            if not part:
                break
        else:
            started |= descendants(run)
    if text.endswith(DONE):
        return
    started |= descendants(run)
    shown = SHOW_CURSOR if sys.stdout.isatty() else b""  # which a bar had hidden
    with contextlib.suppress(OSError):
        sys.stdout.buffer.write(shown + text)
        sys.stdout.buffer.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever reads the screen need not wait longer
    time.sleep(GRACE_SECONDS)
    end(started)


def descendants(run: int) -> dict[int, int]:
    """Number -> start time, in the kernel's ticks, of what a process and its children have started; on Linux."""
    found = {int(folder.name): seen for folder in Path("/proc").glob("[0-9]*") if (seen := _look(folder))}
    below = {run}
    while more := {number for number, (parent, _) in found.items() if parent in below} - below:
        below |= more
    return {number: found[number][1] for number in below - {run, os.getpid()}}


def end(started: dict[int, int]) -> None:
    """Kill these processes, unless their numbers are others' by now."""
    for number, when in started.items():
        with contextlib.suppress(OSError):
            process = os.pidfd_open(number)
            try:
                seen = _look(Path(f"/proc/{number}"))
                if seen and seen[1] == when:
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            finally:
                os.close(process)


def _look(folder: Path) -> tuple[int, int] | None:
    """(parent, start time) of /proc/NUMBER; None: it is gone."""
    try:
        fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()  # before: its name, with anything in it
    except OSError:
        return None
    return int(fields[1]), int(fields[19])


if __name__ == "__main__":
    _wait(int(sys.argv[1]))
