"""A line of small stages, so that its behaviour is tested without Ray, models and minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import fake_run
from rich.console import Console

from flows.prefect_server import EmbeddedServer


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One Prefect API for all tests, with a database of its own: (url)."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
    patch.setenv("DO_NOT_TRACK", "1")
    server = EmbeddedServer(password="")  # as a server of the user's own on this machine
    server.start()
    try:
        yield server.wait()
    finally:
        server.stop()
        patch.undo()


@pytest.fixture
def make_run(tmp_path: Path) -> Any:
    """Makes a run of fake stages over one store: make_run(stages, …)."""

    def make(stages: dict[str, Any], **options: Any) -> Any:
        return fake_run(
            tmp_path / "store", stages, Console(file=(tmp_path / "screen.txt").open("a", encoding="utf-8")), **options
        )

    return make
