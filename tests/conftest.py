"""What all tests share: a real S3 server, started once and only if a test asks for it."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.s3_server import load_serve

BUCKET = "tokenmill"
hypothesis.settings.register_profile("no clock", deadline=None)  # a case may wait for others on a busy machine
hypothesis.settings.load_profile("no clock")


def pytest_configure() -> None:
    """A shell has what it starts behind `&` ignore SIGINT, by which Ray cancels its workers, who would inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as under `nohup`: a command would ignore it too
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The whole line first, then the other files of this folder, which are long: the processes then end together."""
    here = Path(__file__).parent
    items.sort(key=lambda item: (item.path.name != "test_whole_line.py", item.path.parent != here))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Copies and digests of this run stay out of the user's cache, and the user's out of this run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENMILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of Prefect's for the commands that tests start: its database is made once, by the first of them."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict[str, str]]:
    """OpenStack Swift's s3api on 127.0.0.1; its AWS_* variables, which are also set while it runs."""
    serve = load_serve()
    with serve.Server() as server, pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        server.make_bucket(BUCKET)
        yield server.environment


@pytest.fixture(scope="session")
def s3_url(s3_server: dict[str, str]) -> str:
    """A place of its own for this run: s3://bucket/prefix."""
    return f"s3://{BUCKET}/run-{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["local", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of an empty store, on each kind: what is tested with it holds on both."""
    if request.param == "local":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3_url')}/{uuid.uuid4().hex[:8]}"
