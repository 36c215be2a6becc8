"""Which failures another attempt can mend: a lost worker or node, a store or service that was away.

A wrong recipe, bad data or a bug fail the same way again and are never retried. The first exception of the
chain that is of either sort decides.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.errors import Stopped, UserError

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


def is_infrastructure_fault(error: BaseException) -> bool:
    """Whether the same work may well succeed at the next attempt."""
    for link in _chain(error):
        if _by_name(link) or isinstance(link, BUILTIN):
            return True
        if isinstance(link, NEVER):
            return False
    return False


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
