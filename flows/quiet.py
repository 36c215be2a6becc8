"""The screen is the person's: what Ray, Prefect, MLflow and their processes say goes to a log file.

File descriptors 1 and 2 themselves are turned to the file, so that child processes and C++ libraries are quiet too; the
console writes to a copy of the screen's descriptor.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.masking import guard_logs
from cluster.outside import plain
from cluster.store_url import local_folder
from flows.streams import Outgoing, Unhurried
from flows.terminal import Terminal

# Read when the library is imported or started. `setdefault`: what the user has set wins.
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_COLORS": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_CLIENT_ENABLE_METRICS": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
LAST_SECONDS = 5.0  # for the reader of a run's screen to take the rest, once the run has ended
PLAIN_WIDTH = 120  # of tables in a file or a pipe


def log_path(store: str, name: str) -> Path:
    """A new log file's place: `logs/` beside a local store, or in the working folder."""
    folder = local_folder(store)
    beside = Path.cwd() if folder is None else folder.parent
    return beside / "logs" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"


@contextlib.contextmanager
def quiet(path: Path, lasting: bool = False) -> Iterator[Terminal]:
    """Everything that is written to stdout and stderr goes to `path`; the yielded console is the screen.

    With `lasting` the work goes on whatever becomes of the screen, and never waits for its reader; what is not taken by
    the end is in the log. Else it goes on only if nobody reads the screen any more.
    """
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    old_stdout, old_stderr = sys.stdout, sys.stderr
    width = None if _is_terminal(0) and _is_terminal(1) else _width() or PLAIN_WIDTH
    saved = os.dup(1), os.dup(2)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    text = LogFile(os.fdopen(os.dup(log), "wb"))
    own = _fileno(old_stdout) == 1
    screen: Any = old_stdout
    unhurried = Unhurried(os.dup(saved[0])) if own and lasting else None
    if own:
        screen = unhurried or Outgoing(os.fdopen(os.dup(saved[0]), "w", encoding="utf-8", errors="replace"))
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = sys.stderr = text
        guard_logs()
        yield Terminal(file=screen, width=width)
    finally:
        with contextlib.suppress(ValueError, OSError):
            screen.flush()
        if unhurried and (rest := unhurried.close(LAST_SECONDS)):
            text.write(f"--- the screen did not take:\n{rest}")
        sys.stdout, sys.stderr = old_stdout, old_stderr
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for fd in (*saved, log):
            os.close(fd)
        if own and not unhurried:
            with contextlib.suppress(OSError):  # of a full disk: the error that `print` raised is the one to be told
                screen.close()
        # `text` stays open: logging handlers made meanwhile may still hold it


class LogFile(io.TextIOWrapper):
    """The log file as this process's stdout and stderr: a person reads it on a terminal, and sends it to others."""

    def __init__(self, file: Any):
        super().__init__(file, encoding="utf-8", errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        super().write(plain(text))
        return len(text)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _width() -> int | None:
    with contextlib.suppress(OSError):
        return os.get_terminal_size(1).columns
    return None


def _fileno(stream: object) -> int | None:
    try:
        return stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return None
