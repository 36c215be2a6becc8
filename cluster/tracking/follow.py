"""Keeps a file that another party writes, moves and deletes: by a hard link, or by copying what is appended.

A stage writes events.jsonl in its build folder, which is renamed when it is published, uploaded and deleted on S3,
or removed after a crash. A link to the file outlives all of that at no cost. Across file systems there is none:
then the open file is copied from, which outlives a rename and a deletion, but not the death of this process.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO


class Follower:
    """Follows `source` into `kept`.

    The source is made, empty, where its folder exists, so that no writer is quicker than the link.
    """

    def __init__(self, source: Path, kept: Path):
        self.source, self.kept = Path(source), kept
        self._file: BinaryIO | None = None
        self._linked = False
        self.poll()

    def poll(self) -> None:
        """Link, or copy what has been appended since."""
        if self._linked:
            return
        if self._file is None:
            try:
                os.close(os.open(self.source, os.O_RDONLY | os.O_CREAT, 0o644))
            except OSError:
                return  # no folder yet; or it is gone again
            with contextlib.suppress(OSError):
                os.link(self.source, self.kept)
                self._linked = True
                return
            self._file = self.source.open("rb")
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)  # begun anew; the reader knows what it has had
        with self.kept.open("ab") as copy:
            while chunk := self._file.read(1 << 20):
                copy.write(chunk)

    def close(self, published: Path | None = None) -> None:
        """The last look. `published`: where the whole file lies now, for one that was never seen."""
        self.poll()
        if self._file is not None:
            self._file.close()
        elif not self._linked and published is not None and published.exists():
            self.kept.write_bytes(published.read_bytes())
        self._linked = True
