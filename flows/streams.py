"""Standard streams that may be closed or left: `run | head -1`, `run >&-`, a terminal that is gone.

What reads a command's output may stop reading; that ends the printing, not the work (Python would raise
BrokenPipeError, and rich would end the process). A stream that is closed from the start is opened on /dev/null, so that
no file or socket of ours gets its number.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Any

LEFT = (errno.EPIPE, errno.EIO)  # nobody reads the pipe; the terminal has gone


class Outgoing:
    """A text stream that writes to nowhere once its reader has left; `left` says whether it has.

    Args:
        stream: the stream, with a file descriptor of its own.
        whatever: any fault of it (a full disk) is taken so: what is shown is not what the command is for.
    """

    def __init__(self, stream: Any, whatever: bool = False):
        self._stream, self._whatever = stream, whatever
        self.left = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._guarded():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._guarded():
            self._stream.flush()

    @contextlib.contextmanager
    def _guarded(self) -> Any:
        try:
            yield
        except OSError as error:
            if not self._whatever and error.errno not in LEFT:
                # Else what it says is taken for a file's; a copy of stdout has a number for a name.
                name = self._stream.name.strip("<>") if isinstance(self._stream.name, str) else "stdout"
                raise OSError(error.errno, os.strerror(error.errno or 0), name) from error
            self.left = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is still in its buffer goes there too
            os.close(nowhere)


def reader_left(stream: Any) -> bool:
    """Whether nobody reads the stream any more, so that it isn't worth making more of it."""
    return getattr(stream, "left", False)


def prepare() -> None:
    """Make the process's own streams such: called once, at the start of the command."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) == number:
                os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            made = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, made)
    sys.stdout, sys.stderr = Outgoing(sys.stdout), Outgoing(sys.stderr)
