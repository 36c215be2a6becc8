"""The errors that the platform tells apart; all else is a bug of ours.

UserError   what the person gave: exit code 2, never tried again, no traceback
Stopped     the run was asked to stop, and did
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from model.errors import Missing, UserError, did_you_mean, nearest

__all__ = ["Missing", "Stopped", "UserError", "did_you_mean", "named_by_a_person", "nearest"]


class Stopped(Exception):
    """The work was asked to stop and did, with a checkpoint. The message says how to resume."""


@contextlib.contextmanager
def named_by_a_person(path: Path | str) -> Iterator[None]:
    """Within this, a path that isn't there, isn't of the right kind or may not be used is a UserError."""
    try:
        yield
    except OSError as error:
        kinds = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, FileExistsError)
        if not isinstance(error, kinds) and error.errno not in (errno.EROFS, errno.ENAMETOOLONG):
            raise
        raise UserError(f"{error.filename or path}: {error.strerror or error}.") from error
