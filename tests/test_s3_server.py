"""The local S3 server, as a person starts it: by the guide's command, with the Python that it was installed in."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.s3_server import SERVE

pytestmark = pytest.mark.slow
ROOT = SERVE.parents[2]
PYTHON = ROOT / ".venv-s3" / "bin" / "python"


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    started: list[Any] = []

    def begin(*words: str) -> Any:
        process = subprocess.Popen(
            [PYTHON, "infra/s3/serve.py", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            encoding="utf-8",
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_printed_variables_lead_to_a_bucket_and_a_second_server_is_refused(
    serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    first = serve("--folder", str(tmp_path / "data"), "--port", str(port), "--bucket", "mine")
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    while (line := first.stdout.readline()).startswith("export "):
        name, _, value = line.removeprefix("export ").strip().partition("=")
        monkeypatch.setenv(name, value)
    assert "s3://mine/demo" in line, first.stderr.read()
    from cluster.store import open_store

    store = open_store("s3://mine/prefix")
    store.write("a.txt", b"hello")
    assert store.read("a.txt") == b"hello"

    for words, said in (
        (["--folder", str(tmp_path / "data")], "Another server is at work"),
        (["--folder", str(tmp_path / "other"), "--port", str(port)], f"Port {port} is taken"),
    ):
        second = serve(*words)
        _, told = second.communicate(timeout=60)
        assert second.returncode == 1 and told.startswith("Error: ") and said in told
    assert store.read("a.txt") == b"hello"

    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 0
    again = serve("--folder", str(tmp_path / "data"), "--port", str(port), "--bucket", "mine")
    assert again.stdout.readline().startswith("export ")
    assert open_store("s3://mine/prefix").read("a.txt") == b"hello"
