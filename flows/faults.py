"""Which failures another attempt can mend: a lost worker or node, a store or service that was away.

A wrong recipe, bad data or a bug fail the same way again and are never retried. The first exception of the
chain that is of either sort decides.
"""

from __future__ import annotations

import errno
import os
import shutil
import textwrap
from collections.abc import Iterator

from cluster.errors import Stopped, UserError
from cluster.ray_watch import RayLost

NEVER = (UserError, ValueError, TypeError, LookupError, AssertionError, Stopped, KeyboardInterrupt)
BUILTIN = (ConnectionError, TimeoutError)
# By name, so that asking imports nothing: a class that was never imported was never raised.
BY_NAME = {
    "ray": {
        "ActorDiedError", "ActorUnavailableError", "LocalRayletDiedError", "NodeDiedError",
        "NodePreemptedError",
        "ObjectFetchTimedOutError", "ObjectLostError", "ObjectReconstructionFailedError", "OwnerDiedError",
        "RpcError", "WorkerCrashedError", "WorkerHealthCheckFailedError", "WorkerHealthCheckTimeoutError",
        "WorkerGroupStartupFailedError", "WorkerGroupStartupTimeoutError",
    },
    "botocore": {
        "ConnectTimeoutError", "ConnectionClosedError", "EndpointConnectionError", "HTTPClientError",
        "ReadTimeoutError", "ResponseStreamingError",
    },
    "urllib3": {"HTTPError", "MaxRetryError", "ProtocolError", "TimeoutError"},
    "requests": {"ConnectionError", "Timeout"},
}  # fmt: skip
SERVER_CODES = {
    "InternalError",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "500",
    "502",
    "503",
    "504",
}


# What the system, and libraries that keep only its words, say of a place that takes no data.
DISK = {
    errno.ENOSPC: ("No space left on device", "database or disk is full"),
    errno.EDQUOT: ("Disk quota exceeded",),
    errno.EROFS: ("Read-only file system", "attempt to write a readonly database"),
    errno.EACCES: (),
}
DISK_WORDS = {
    errno.ENOSPC: "the disk is full. Make room on it",
    errno.EDQUOT: "the disk quota is used up. Make room in it",
    errno.EROFS: "it can only be read. Name a place that can be written, or make this one so",
    errno.EACCES: "it may not be read or written by this user. Give the right to, or name another place",
}


def disk_fault(error: BaseException, place: str) -> str | None:
    """What a full or read-only disk says to a person, in a sentence with the path; None: it is another fault.

    Args:
        place: where was written; for a fault that names no file.
    """
    for link in _chain(error):
        number = _disk_number(link)
        if number is not None:
            return f"{_file_of(link) or place}: {DISK_WORDS[number]}."
    return None


def _disk_number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno in DISK:
        return error.errno
    return next((number for number, words in DISK.items() if any(w in str(error) for w in words)), None)


def _file_of(error: BaseException) -> str:
    """The file that an error is about, "" where it doesn't say."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):  # (from, to, why) for each
        return str(error.args[0][0][1])
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    return os.fsdecode(name) if isinstance(name, str | bytes) else ""


def is_infrastructure_fault(error: BaseException) -> bool:
    """Whether the same work may well succeed at the next attempt."""
    for link in _chain(error):
        if _disk_number(link) is not None:
            return False
        if isinstance(link, RayLost):
            return link.again
        if _by_name(link) or isinstance(link, BUILTIN):
            return True
        if isinstance(link, NEVER):
            return False
    return False


def in_a_line(error: BaseException) -> str:
    """What an error says, for a line of the screen."""
    words = textwrap.shorten(str(error).split("\n")[0] or type(error).__name__, 240, placeholder=" …")
    return words if words.endswith((".", "!", "?", "…")) else f"{words}."


def _by_name(error: BaseException) -> bool:
    for kind in type(error).__mro__:
        if kind.__name__ in BY_NAME.get(kind.__module__.partition(".")[0], ()):
            return True
    response = getattr(error, "response", None)  # botocore's ClientError
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or response.get("Error", {}).get("Code") in SERVER_CODES
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what Ray Train's workers raised, and what it was raised from, outermost first; each once."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        link = pending.pop(0)
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        failures = getattr(link, "worker_failures", None)
        pending += list(failures.values()) if isinstance(failures, dict) else []
        cause = getattr(link, "cause", None)  # RayTaskError
        pending += [cause if isinstance(cause, BaseException) else None, link.__cause__ or link.__context__]
