"""Which failures are worth another attempt."""

from __future__ import annotations

import botocore.exceptions
import pytest
import ray.exceptions as ray_errors
from ray.train import WorkerGroupError

from cluster.errors import Stopped
from flows.faults import is_infrastructure_fault


def caused(outer: Exception, cause: Exception) -> Exception:
    outer.__cause__ = cause
    return outer


def answer(code: str, status: int) -> Exception:
    body = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(body, "PutObject")


def from_task(cause: Exception) -> Exception:
    """As ray.get raises it."""
    return ray_errors.RayTaskError("work", "traceback", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("by peer"),
        TimeoutError(),
        ray_errors.WorkerCrashedError(),
        ray_errors.NodeDiedError("node"),
        ray_errors.ObjectLostError("00" * 28, None, ""),
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"),
        botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"),
        answer("SlowDown", 503),
        from_task(ConnectionError("inside a worker")),
        caused(RuntimeError("the store gave up"), botocore.exceptions.ConnectionClosedError(endpoint_url="http://x")),
        WorkerGroupError("a worker died", {0: ray_errors.ActorDiedError()}),
    ],
    ids=lambda e: type(e).__name__,
)
def test_lost_workers_and_services_that_are_away_are_tried_again(error: Exception) -> None:
    assert is_infrastructure_fault(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("seq_len"),
        KeyError("text"),
        RuntimeError("a bug"),
        MemoryError(),
        OSError(28, "No space left on device"),
        Stopped("at step 3"),
        KeyboardInterrupt(),
        answer("AccessDenied", 403),
        from_task(ValueError("a bad record")),
        caused(ValueError("can't be read"), ConnectionError("away")),
        WorkerGroupError("a worker raised", {0: ValueError("NaN loss")}),
    ],
    ids=lambda e: type(e).__name__,
)
def test_what_fails_the_same_way_again_is_not(error: BaseException) -> None:
    assert not is_infrastructure_fault(error)


def test_a_chain_that_closes_on_itself_ends() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert not is_infrastructure_fault(first)
