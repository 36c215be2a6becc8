"""A real S3 server on this machine, for tests and for trying `store = "s3://…"`: OpenStack Swift with its s3api.

    infra/s3/install.sh && python infra/s3/serve.py        prints the AWS_* exports, serves until Ctrl-C
    python infra/s3/serve.py --folder DIR --port 8000      keeps the objects in DIR

One proxy and one account, container and object server each, on 127.0.0.1 only, started with rings of one
device. Not for production: one replica, no TLS, and a password that is in this file.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import email.utils
import fcntl
import getpass
import hmac
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PYTHON = ROOT / ".venv-s3" / "bin" / "python"
ACCESS_KEY, SECRET_KEY, REGION = "test:tester", "testing", "us-east-1"
START_SECONDS = 60

SWIFT_CONF = """\
[swift-hash]
swift_hash_path_suffix = tokenmill
[storage-policy:0]
name = gold
default = yes
"""

BACKEND_CONF = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
log_level = ERROR
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

PROXY_CONF = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
log_level = ERROR
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats bulk s3api tempauth copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
min_segment_size = 1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""


class Server:
    """Swift in a folder. `with Server() as server:` starts it and stops it.

    Args:
        folder: keeps its objects; default: a temporary one, removed at the end.
        port: of 127.0.0.1; 0: a free one.
    """

    def __init__(self, folder: Path | None = None, port: int = 0):
        self._temporary = folder is None
        self.folder = Path(folder or tempfile.mkdtemp(prefix="tokenmill-s3-")).absolute()
        *backends, free = _free_ports(4)
        self.port = port or free
        self._process: subprocess.Popen | None = None
        self._lock: TextIO | None = None
        self._ports = dict(zip(("account", "container", "object"), backends, strict=True)) | {"proxy": self.port}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The standard variables by which any S3 client finds and uses it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
        }

    def start(self) -> Server:
        """Start, and return when it answers.

        Raises:
            RuntimeError: it isn't installed, another one has the folder or the port, the file system has no
                extended attributes, or it does not answer.
        """
        if not PYTHON.exists():
            raise RuntimeError(f"The S3 server isn't installed: run {HERE.relative_to(ROOT)}/install.sh first.")
        self._claim()
        self._configure()
        with (self.folder / "swift.log").open("ab") as log:
            command = [str(PYTHON), str(HERE / "swift_process.py"), str(self.folder)]
            command += [f"{kind}={port}" for kind, port in self._ports.items()]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop its processes, and delete the folder if it is a temporary one."""
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()  # its servers end with it
                self._process.wait()
        self._process = None
        if self._lock is not None:
            self._lock.close()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def make_bucket(self, name: str) -> None:
        """Make a bucket, if it isn't there, by a signed request of S3's: this environment has no boto3.

        Signature version 2: https://docs.aws.amazon.com/AmazonS3/latest/userguide/RESTAuthentication.html
        """
        path, now = f"/{urllib.parse.quote(name, safe='')}", email.utils.formatdate(usegmt=True)
        digest = hmac.digest(SECRET_KEY.encode(), f"PUT\n\ntext/xml\n{now}\n{path}".encode(), "sha1")
        headers = {"Date": now, "Content-Type": "text/xml"}
        headers["Authorization"] = f"AWS {ACCESS_KEY}:{base64.b64encode(digest).decode()}"
        try:
            urllib.request.urlopen(urllib.request.Request(self.endpoint + path, b"", headers, method="PUT")).close()
        except urllib.error.HTTPError as error:
            with error:
                if b"BucketAlreadyOwnedByYou" not in (text := error.read()):
                    raise RuntimeError(f"No bucket {name!r}: {text.decode(errors='replace')[:300]}") from None

    def _claim(self) -> None:
        """Hold the folder, which falls free when this process ends however it does; and see that the port is free.

        (Swift's servers share a port with whoever listens on it already.)
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "serve.lock").open("a", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise RuntimeError(
                f"Another server is at work on {self.folder}: stop it, or name another --folder."
            ) from None
        if _listens(self.port):
            self._lock.close()
            raise RuntimeError(f"Port {self.port} is taken: stop what listens there, or name another --port.")

    def _configure(self) -> None:
        device = self.folder / "devices" / "d1"
        device.mkdir(parents=True, exist_ok=True)
        try:
            os.setxattr(device, "user.swift.probe", b"x")
        except OSError as error:
            raise RuntimeError(f"Swift needs extended attributes, which {self.folder} has not: {error}") from None
        common = {"folder": self.folder, "user": getpass.getuser()}
        (self.folder / "swift.conf").write_text(SWIFT_CONF, encoding="utf-8")
        for kind, port in self._ports.items():
            text = (PROXY_CONF if kind == "proxy" else BACKEND_CONF).format(kind=kind, port=port, **common)
            (self.folder / f"{kind}.conf").write_text(text, encoding="utf-8")

    def _wait(self) -> None:
        ends = time.monotonic() + START_SECONDS
        while time.monotonic() < ends:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"Swift ended at its start: {self._log()}")
            if self._healthy() and all(_listens(p) for p in self._ports.values()):
                return
            time.sleep(0.1)
        raise RuntimeError(f"Swift did not answer within {START_SECONDS} s: {self._log()}")

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/healthcheck", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def _log(self) -> str:
        return (self.folder / "swift.log").read_text(errors="replace", encoding="utf-8")[-4000:]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as open_at_once:
        probes = [open_at_once.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the objects are kept; default: a temporary folder")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--bucket", default="tokenmill", help="made if it isn't there (default: tokenmill)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as at_end, contextlib.suppress(KeyboardInterrupt):
        try:
            server = at_end.enter_context(Server(options.folder, options.port))
            server.make_bucket(options.bucket)
        except RuntimeError as error:
            raise SystemExit(f"Error: {error}") from None
        for name, value in server.environment.items():
            print(f"export {name}={value}")
        print(
            f"# then: tokenmill run RECIPE --set store=s3://{options.bucket}/demo; Ctrl-C here stops it",
            flush=True,
        )
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
