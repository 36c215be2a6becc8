"""A store on S3, or on anything that speaks its protocol, by boto3.

Commit of a folder at KEY:

    1. files -> KEY/NONCE/…, each with its MD5, large ones in parts
    2. a listing counts them
    3. KEY/manifest.json, which names the nonce, is put with If-None-Match, if none is there
    4. where the listing shows another nonce, somebody was racing: wait until the manifest has settled, read
    it

A manifest names one writer's whole upload, so nobody ever reads a mixture. AWS and Ceph hold the condition, and the
first writer stays. Some servers check it before the upload ends (Swift), others ignore it; step 4 makes racing writers
agree there too: whoever overwrites a manifest had uploaded before it was put, so its owner sees that nonce.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import logging
import os
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cluster.store.base import MANIFEST, WORK, Entry, NotFound, StoreError, check_key, files_in, join
from cluster.store.s3_client import absent, ask, client, code, list_objects, split_url, status
from model.inside import plain_name

PART_BYTES = 16 << 20  # of a multipart upload; AWS takes no less than 5 MiB
MULTIPART_BYTES = 32 << 20  # files from this size on are sent in parts
MAX_PARTS = 1_000  # AWS takes 10,000, Swift as many as this
UPLOADS = 4  # files, and parts of a file, at once
SETTLE_SECONDS = 1.5  # how long a put of a manifest may still be on its way when another's is seen
_log = logging.getLogger(__name__)
_honours: dict[tuple[str, str], bool] = {}  # (endpoint, bucket) -> its answer to the probe
_probing = threading.Lock()


class S3Store:
    """Objects under one prefix of a bucket, which must exist.

    Args:
        url: s3://bucket or s3://bucket/prefix.
    """

    def __init__(self, url: str):
        self.bucket, prefix = split_url(url)
        self.prefix = join(prefix)
        self.url = f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    def _key(self, key: str) -> str:
        return join(self.prefix, check_key(key))

    def _where(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._key(key)}

    def _there(self, key: str) -> dict[str, str]:
        """As `_where`, of a key that the server has listed: it may be any text, and names just that object."""
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}" if self.prefix else key}

    def try_writing(self) -> None:
        pass  # the first write says it, in S3's words

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder = self._key(prefix.rstrip("/"))
        skip = len(self.prefix) + 1 if self.prefix else 0
        for entry in list_objects(self.bucket, folder + "/" if folder else ""):
            yield Entry(entry.key[skip:], entry.size, entry.etag)

    def folders(self, prefix: str = "") -> Iterator[str]:
        folder = self._key(prefix.rstrip("/"))
        folder = folder + "/" if folder else ""
        token: dict[str, str] = {}
        while True:
            page = ask(
                f"list s3://{self.bucket}/{folder}",
                lambda: client().list_objects_v2(Bucket=self.bucket, Prefix=folder, Delimiter="/", **token),  # noqa: B023
            )
            for item in page.get("CommonPrefixes", ()):
                yield item["Prefix"][len(folder) :].rstrip("/")
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def stat(self, key: str) -> Entry | None:
        try:
            head = ask(f"look at {self.url}/{key}", lambda: client().head_object(**self._where(key)))
        except NotFound:
            return None
        return Entry(key, head["ContentLength"], head["ETag"].strip('"'))

    def read(self, key: str) -> bytes:
        return ask(f"read {self.url}/{key}", lambda: client().get_object(**self._where(key))["Body"].read())

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        condition: dict[str, Any] = {}
        if if_absent:
            condition = {"IfNoneMatch": "*"} if self.conditional() else {}
            if self.stat(key) is not None:
                return False  # asked also for the sake of servers that ignore the condition

        def refused(error: Exception) -> bool:
            return if_absent and status(error) == 412

        try:
            ask(
                f"write {self.url}/{key}",
                lambda: client().put_object(**self._where(key), Body=data, ContentMD5=_md5(data), **condition),
                refused,
            )
        except Exception as error:
            if not refused(error):
                raise
            # A put whose answer was lost is asked again, and then refused because of itself.
            retried = error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0  # type: ignore[attr-defined]
            return retried and self.read(key) == data
        return True

    def upload(self, path: Path, key: str) -> None:
        size = path.stat().st_size
        if size < MULTIPART_BYTES:
            self.write(key, path.read_bytes())
        else:
            self._upload_parts(path, size, key)

    def _upload_parts(self, path: Path, size: int, key: str) -> None:
        what = f"upload {path.name} to {self.url}/{key}"
        where = self._where(key)
        part = max(PART_BYTES, -(-size // MAX_PARTS))
        begun = ask(what, lambda: client().create_multipart_upload(**where))["UploadId"]

        def send(number: int) -> dict[str, Any]:
            with path.open("rb") as file:
                data = os.pread(file.fileno(), part, (number - 1) * part)
            answer = ask(
                what,
                lambda: client().upload_part(
                    **where, UploadId=begun, PartNumber=number, Body=data, ContentMD5=_md5(data)
                ),
            )
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            with ThreadPoolExecutor(UPLOADS) as pool:
                parts = list(pool.map(send, range(1, -(-size // part) + 1)))
            done = {"Parts": parts}
            try:
                ask(
                    what,
                    lambda: client().complete_multipart_upload(**where, UploadId=begun, MultipartUpload=done),
                    lambda error: code(error) == "NoSuchUpload",
                )
            except Exception as error:  # completed by a request whose answer was lost?
                there = self.stat(key) if code(error) == "NoSuchUpload" else None
                if there is None or there.size != size:
                    raise
        except BaseException:
            # Parts of an upload that never ends are invisible, and paid for.
            try:
                client().abort_multipart_upload(**where, UploadId=begun)
            except Exception as error:
                _log.warning("Can't take back the unfinished upload of %s/%s: %s", self.url, key, error)
            raise

    def download(self, key: str, path: Path) -> None:
        from boto3.s3.transfer import TransferConfig

        entry = self.stat(key)
        if entry is None:
            raise NotFound(f"{self.url} has no {key}")
        transfer = TransferConfig(
            multipart_threshold=MULTIPART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=UPLOADS
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".tmp-{uuid.uuid4().hex}"

        def get() -> None:
            client().download_file(self.bucket, self._key(key), str(temporary), Config=transfer)
            got = temporary.stat().st_size
            if got != entry.size:
                raise ConnectionError(f"{got} bytes came, not {entry.size}")

        try:
            ask(f"download {self.url}/{key}", get)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def delete_prefix(self, prefix: str) -> None:
        if not join(prefix):
            raise ValueError("An empty prefix would delete the whole store.")
        keys = [e.key for e in self.list(prefix)]
        # The manifest goes first: from then on there is nothing that could be read half.
        for key in [k for k in keys if k.endswith(f"/{MANIFEST}")] + [check_key(join(prefix))]:
            self._delete(key)
        with ThreadPoolExecutor(UPLOADS) as pool:
            list(pool.map(self._delete, keys))

    def _delete(self, key: str) -> None:
        ask(
            f"delete {self.url}/{key}",
            lambda: _ignoring_absent(lambda: client().delete_object(**self._there(key))),
        )

    def move_prefix(self, src: str, dst: str) -> None:
        keys = [e.key for e in self.list(src)]
        if not keys:
            raise NotFound(f"{self.url} has no {src}")
        if next(iter(self.list(dst)), None):
            raise ValueError(f"Can't move {src} to {dst}: it exists in {self.url}.")

        def copy(key: str) -> None:
            target = self._there(f"{join(dst)}/{key[len(join(src)) + 1 :]}")["Key"]
            ask(f"copy {self.url}/{key}", lambda: client().copy(self._there(key), self.bucket, target))

        with ThreadPoolExecutor(UPLOADS) as pool:
            list(pool.map(copy, keys))
        self.delete_prefix(src)

    def conditional(self) -> bool:
        """Whether the server honours If-None-Match; asked once a process."""
        endpoint = client().meta.endpoint_url
        with _probing:
            if (endpoint, self.bucket) not in _honours:
                _honours[endpoint, self.bucket] = self._probe()
                if not _honours[endpoint, self.bucket]:
                    _log.warning(
                        "The server of %s ignores If-None-Match. Artifacts stay whole; two runs that make the same "
                        "one at the same time may each pay for an upload.",
                        self.url,
                    )
            return _honours[endpoint, self.bucket]

    def _probe(self) -> bool:
        """Write one object twice: the second is to be refused."""
        from botocore.exceptions import ClientError

        where = self._where(f"{WORK}/probe-{uuid.uuid4().hex}")
        ask(f"write to {self.url}", lambda: client().put_object(**where, Body=b"probe"))
        try:
            client().put_object(**where, Body=b"probe", IfNoneMatch="*")
            return False
        except ClientError as error:
            return status(error) == 412
        finally:
            ask(f"delete in {self.url}", lambda: _ignoring_absent(lambda: client().delete_object(**where)))

    def commit(self, folder: Path, key: str, manifest: Callable[[str], bytes]) -> bool:
        if self.stat(join(key, MANIFEST)):
            return False
        names = files_in(folder)
        for _ in range(3):
            nonce = secrets.token_hex(8)
            prefix = join(key, nonce)
            with ThreadPoolExecutor(UPLOADS) as pool:
                list(pool.map(lambda n: self.upload(folder / n, join(prefix, n)), names))  # noqa: B023
            there = {e.key: e.size for e in self.list(prefix)}
            if there == {join(prefix, n): (folder / n).stat().st_size for n in names}:
                break
            self.delete_prefix(prefix)  # someone cleared the place meanwhile
        else:
            raise StoreError(f"Can't publish {key} in {self.url}: files that were uploaded are not all there.")
        mine = manifest(prefix + "/")
        shown = self.write(join(key, MANIFEST), mine, if_absent=True)
        if self._alone(key, nonce):
            return shown
        if self.settled(join(key, MANIFEST)) == mine:
            return True
        if not shown:
            # What was shown even for a moment stays, for those who saw it; nobody saw this.
            self.delete_prefix(prefix)
        return False

    def _alone(self, key: str, nonce: str) -> bool:
        return all(name == nonce for name in self.folders(key))

    def settled(self, key: str) -> bytes | None:
        """The content of `key` once no put that was under way can still change it."""
        seen, since = self._content(key), time.monotonic()
        while time.monotonic() - since < SETTLE_SECONDS:
            time.sleep(SETTLE_SECONDS / 6)
            now = self._content(key)
            if now != seen:
                seen, since = now, time.monotonic()
        return seen

    def _content(self, key: str) -> bytes | None:
        try:
            return self.read(key)
        except NotFound:
            return None

    def withdraw(self, key: str, dst: str, seen: bytes | None) -> bool:
        manifest = join(key, MANIFEST)
        if seen is None or self._content(manifest) != seen:
            return False
        self.write(join(dst, MANIFEST), seen)
        self._delete(manifest)
        try:
            prefix = plain_name(str(json.loads(seen)["prefix"]).rstrip("/"))
        except (ValueError, KeyError, TypeError, RecursionError):
            return True  # a manifest that can't be read, or that names what it may not, names no files
        if prefix.startswith(join(key) + "/"):
            for entry in list(self.list(prefix)):
                target = self._there(f"{join(dst)}/{entry.key[len(prefix) + 1 :]}")["Key"]
                ask(
                    f"copy {self.url}/{entry.key}",
                    functools.partial(client().copy, self._there(entry.key), self.bucket, target),
                )
            self.delete_prefix(prefix)
        return True

    def folder(self, key: str) -> Path | None:
        return None


def _ignoring_absent(call: Callable[[], Any]) -> None:
    from botocore.exceptions import ClientError

    try:
        call()
    except ClientError as error:
        if not absent(error):
            raise


def _md5(data: bytes) -> str:
    """Content-MD5: not for secrecy, but every S3 server checks it."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
