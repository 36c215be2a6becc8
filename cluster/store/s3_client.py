"""The S3 client of a process, and its way of asking: retries, errors a person can act on, listings, streams.

Endpoint, region and credentials come from the standard AWS variables and files. Newer checksums and headers are only
used where a server demands them: many compatible servers refuse what they don't know.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar, cast

from cluster.errors import UserError
from cluster.masking import login_of, masked, taken_out, without_secrets
from cluster.store.base import Entry, NotFound, StoreError

T = TypeVar("T")
CONNECTIONS = 32
ATTEMPTS = 6  # boto3's own, for one request, with growing waits: about 15 s
ROUNDS = 3  # ours around them, also for a body that breaks off: about a minute in all
BUFFER = 1 << 20
PASSING = ("SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "BadDigest", "IncompleteBody")
_making = threading.Lock()


def split_url(url: str) -> tuple[str, str]:
    """(bucket, key or prefix) of s3://bucket/key. Raises UserError without a bucket, and where keys stand in it."""
    url = taken_out(url)
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if "@" in without_secrets(url).removeprefix("s3://").partition("/")[0]:
        raise UserError(
            f"{masked(url)}: an S3 address takes no keys. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, and write s3://bucket/prefix."
        )
    if not url.startswith("s3://") or not bucket:
        raise UserError(f"Not an S3 URL: {url!r}. Give s3://bucket/prefix.")
    return bucket, key


def client() -> Any:
    """This process's client, which threads share; a forked child makes its own."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    with _making:  # making one isn't thread-safe, using it is
        return _client(os.getpid(), endpoint, os.environ.get("AWS_ACCESS_KEY_ID"))


@functools.lru_cache(maxsize=8)
def _client(pid: int, endpoint: str | None, key_id: str | None) -> Any:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    options: dict[str, Any] = {
        "retries": {"mode": "standard", "max_attempts": ATTEMPTS},
        "max_pool_connections": CONNECTIONS,
        "connect_timeout": 10,
        "read_timeout": 60,
        "request_checksum_calculation": os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"),
        "response_checksum_validation": os.environ.get("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required"),
    }
    if endpoint:
        options["s3"] = {"addressing_style": "path"}  # bucket.host needs a wildcard name, which few servers have
    session = boto3.Session()
    region = session.region_name or ("us-east-1" if endpoint else None)
    # A request is signed, so a user and password in the endpoint serve for nothing; errors would spell them out.
    bare = login_of(endpoint)[0] if endpoint else None
    try:
        return session.client("s3", config=Config(**options), region_name=region, endpoint_url=bare)
    except ValueError as error:
        if bare is None or isinstance(error, BotoCoreError):
            raise
        raise UserError(f"AWS_ENDPOINT_URL is {masked(bare)!r}, no address: write http://host:port.") from None


def code(error: BaseException) -> str:
    """The server's word for what went wrong; "" where it isn't an answer of a server."""
    return str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))


def status(error: BaseException) -> int:
    """The HTTP status of the answer; 0 where there was none."""
    metadata = (getattr(error, "response", None) or {}).get("ResponseMetadata", {})
    return int(metadata.get("HTTPStatusCode") or 0)


def absent(error: BaseException) -> bool:
    return code(error) in ("NoSuchKey", "404", "NotFound") or (status(error) == 404 and code(error) == "")


def ask(what: str, call: Callable[[], T], expected: Callable[[Exception], bool] = lambda e: False) -> T:
    """What `call` returns. What passes by itself is asked again, with growing waits.

    Args:
        what: for messages: "read s3://bucket/key".
        expected: errors of the server that the caller handles: raised as they are, at once.
    Raises:
        NotFound: there is no such key.
        StoreError: the server refused, or never answered; what was asked, why it failed and what to do.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    for left in reversed(range(ROUNDS)):
        try:
            return call()
        except (ClientError, BotoCoreError, Boto3Error, OSError) as error:
            if expected(error):
                raise
            if absent(error):
                raise NotFound(f"Can't {what}: it isn't there") from None
            if not left or not _passing(error):
                raise StoreError(f"Can't {what}: {_reason(error)}") from error
        time.sleep(random.uniform(0.5, 1.0) * 2 ** (ROUNDS - left - 1))
    raise AssertionError("unreachable: the last round returns or raises")


def _passing(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    from botocore.exceptions import (
        ClientError,
        NoCredentialsError,
        NoRegionError,
        ParamValidationError,
        PartialCredentialsError,
        ProfileNotFound,
    )

    if isinstance(error, ClientError):
        down = status(error) >= 500 and status(error) != 501  # 501: it doesn't know the request
        return down or status(error) in (408, 409, 429) or code(error) in PASSING
    lasting = (NoCredentialsError, PartialCredentialsError, ParamValidationError, NoRegionError, ProfileNotFound)
    return not isinstance(error, lasting)


def _reason(error: Exception) -> str:
    hints = {
        "NoSuchBucket": "make the bucket first, or correct the store's name",
        "AccessDenied": "AWS_ACCESS_KEY_ID's user may not do that: check its policy, and the bucket's name",
        "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID",
        "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY",
        "NoCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        "NoRegionError": "set AWS_REGION, or AWS_ENDPOINT_URL for a server that isn't AWS",
        "ProfileNotFound": "correct AWS_PROFILE, or unset it",
        "ParamValidationError": "correct the address, s3://bucket/prefix",
    }
    away = "check AWS_ENDPOINT_URL, and that the server runs and can be reached"
    hint = hints.get(code(error)) or hints.get(type(error).__name__) or (away if _passing(error) else "")
    return masked(f"{error}") + (f" ({hint})" if hint else "")


def list_objects(bucket: str, prefix: str) -> Iterator[Entry]:
    """All objects whose keys start with `prefix`, in the order of their keys; keys are whole."""
    token: dict[str, str] = {}
    while True:
        page = ask(
            f"list s3://{bucket}/{prefix}",
            lambda: client().list_objects_v2(Bucket=bucket, Prefix=prefix, **token),  # noqa: B023
        )
        for item in page.get("Contents", ()):
            yield Entry(item["Key"], item["Size"], item["ETag"].strip('"'))
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def open_stream(url: str) -> BinaryIO:
    """A seekable stream of an object, read as it was when it was opened. Raises NotFound."""
    bucket, key = split_url(url)
    return cast(BinaryIO, io.BufferedReader(_Object(bucket, key), BUFFER))


class _Object(io.RawIOBase):
    """An object's bytes by ranged reads: one connection as long as reads follow each other."""

    def __init__(self, bucket: str, key: str):
        self._url, self._where = f"s3://{bucket}/{key}", {"Bucket": bucket, "Key": key}
        head = ask(f"read {self._url}", lambda: client().head_object(**self._where))
        self._size, self._etag = head["ContentLength"], head["ETag"]
        self._position, self._body = 0, None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + (0, self._position, self._size)[whence]
        if position < 0:
            raise ValueError(f"Can't seek to {position}.")
        if position != self._position:
            self._drop()
            self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0

        def read() -> bytes:
            try:
                if self._body is None:
                    # IfMatch: half of one version and half of the next would be a text that never was
                    answer = client().get_object(**self._where, Range=f"bytes={self._position}-", IfMatch=self._etag)
                    self._body = answer["Body"]
                data = self._body.read(wanted)
                if not data:
                    raise ConnectionError("the connection ended before the object did")
                return data
            except BaseException:
                self._drop()
                raise

        try:
            data = ask(f"read {self._url}", read)
        except StoreError as error:
            if error.__cause__ is not None and status(error.__cause__) == 412:
                raise StoreError(f"{self._url} was changed while it was read: run again.") from None
            raise
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._body is not None:
            with contextlib.suppress(Exception):
                self._body.close()
            self._body = None
