"""Standard streams that may be closed, left or not read: `run | head -1`, `run >&-`, a terminal that is gone or held.

What reads a command's output may stop reading; that ends the printing, not the work (Python would raise
BrokenPipeError, and rich would end the process). A stream that is closed from the start is opened on /dev/null, so that
no file or socket of ours gets its number. A reader that stands still (Ctrl-S, a pager) holds up a command that only
prints, but not a run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from cluster.outside import plain

UNREAD = 256 << 10  # bytes that wait for a reader who is slow
LEFT = (errno.EPIPE, errno.EIO)  # nobody reads the pipe; the terminal has gone


class Outgoing:
    """A text stream that writes to nowhere once its reader has left; `left` says whether it has.

    Args:
        stream: the stream, with a file descriptor of its own.
        shown: text -> how it is written.
    """

    def __init__(self, stream: Any, shown: Callable[[str], str] = str):
        self._stream, self._shown = stream, shown
        self.left = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._guarded():
            self._stream.write(self._shown(text))
        return len(text)

    def flush(self) -> None:
        with self._guarded():
            self._stream.flush()

    @contextlib.contextmanager
    def _guarded(self) -> Any:
        try:
            yield
        except OSError as error:
            if error.errno not in LEFT:
                # Else what it says is taken for a file's; a copy of stdout has a number for a name.
                name = self._stream.name.strip("<>") if isinstance(self._stream.name, str) else "stdout"
                raise OSError(error.errno, os.strerror(error.errno or 0), name) from error
            self.left = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is still in its buffer goes there too
            os.close(nowhere)


class Unhurried:
    """A text stream on which nobody waits: a thread writes, and of what its reader is too slow for the newest is kept.

    What could not be shown is said in its place. Any fault of the descriptor (nobody reads, a full disk) ends the
    showing and nothing else.

    Args:
        descriptor: a copy of the screen's, which is this stream's own.
    """

    encoding = "utf-8"

    def __init__(self, descriptor: int):
        self.left = False
        self._descriptor = descriptor
        self._changed = threading.Condition()
        self._parts: deque[bytes] = deque()
        self._at_hand = b""  # what the thread is about to write
        self._size = self._lost = 0
        self._closed = False
        self._thread = threading.Thread(target=self._write_out, name="screen", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        data = text.encode("utf-8", errors="replace")
        with self._changed:
            self._parts.append(data)
            self._size += len(data)
            while self._size > UNREAD and len(self._parts) > 1:
                old = self._parts.popleft()
                self._size -= len(old)
                self._lost += max(old.count(b"\n"), 1)
            self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def close(self, seconds: float = 0.0) -> str:
        """Give the reader that long for the rest; returns what it did not take."""
        end = time.monotonic() + seconds
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(max(end - time.monotonic(), 0.0))
        with self._changed:
            return b"".join([self._at_hand, *self._parts]).decode("utf-8", errors="replace")

    def _write_out(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._parts or self._closed)
                if not self._parts:
                    break
                lost, self._lost = self._lost, 0
                self._at_hand = self._parts.popleft()
                self._size -= len(self._at_hand)
            if lost:
                said = f"… {lost} lines were not shown here: nobody read them in time\n"
                self._at_hand = said.encode() + self._at_hand
            while self._at_hand and not self.left:
                try:
                    self._at_hand = self._at_hand[os.write(self._descriptor, self._at_hand) :]
                except OSError:
                    self.left = True
            self._at_hand = b""
        os.close(self._descriptor)


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
    # On stderr is what Python and typer say of a wrong word, or of a bug: with what the person typed in it.
    sys.stdout, sys.stderr = Outgoing(sys.stdout), Outgoing(sys.stderr, shown=plain)
