"""Which failures are worth another attempt."""

from __future__ import annotations

import shutil

import botocore.exceptions
import pytest
import ray.exceptions as ray_errors
from ray.train import WorkerGroupError

from cluster.errors import Stopped, UserError
from flows.cli.errors import in_words, is_a_bug
from flows.faults import disk_fault, is_infrastructure_fault


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


FULL = "[Errno 28] No space left on device"


@pytest.mark.parametrize(
    ("error", "path", "words"),
    [
        (OSError(28, "No space left on device", "/s/a.bin"), "/s/a.bin", "full"),
        (OSError(28, "No space left on device"), "/the/store", "full"),
        (OSError(30, "Read-only file system", "/s/work"), "/s/work", "only be read"),
        (OSError(122, "Disk quota exceeded", "/s/a"), "/s/a", "quota"),
        (PermissionError(13, "Permission denied", b"/s/a"), "/s/a", "by this user"),
        (shutil.Error([("/tmp/x", "/s/y", FULL), ("/tmp/z", "/s/w", FULL)]), "/s/y", "full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "/the/store", "full"),  # safetensors
        (caused(ValueError("while saving"), OSError(28, "No space left on device", "/s/b")), "/s/b", "full"),
        (from_task(OSError(28, "No space left on device", "/s/c")), "/s/c", "full"),
        (ConnectionError("MLflow does not answer: attempt to write a readonly database"), "/the/store", "only be read"),
    ],
)
def test_a_disk_that_takes_no_data_is_one_sentence_with_the_path_and_no_bug(
    error: Exception, path: str, words: str
) -> None:
    said = disk_fault(error, "/the/store")
    assert said is not None and words in said and said.startswith(f"{path}: ") and "\n" not in said
    assert not is_infrastructure_fault(error) and not is_a_bug(error)
    assert in_words(error, "/the/store") == said


def test_other_faults_are_no_disk_s() -> None:
    assert disk_fault(ConnectionResetError("by peer"), "/x") is None
    assert disk_fault(FileNotFoundError(2, "No such file", "/x"), "/x") is None
    assert in_words(UserError("No space left on device, says the recipe"), "/x").startswith("No space")
