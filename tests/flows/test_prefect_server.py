"""The embedded Prefect API is this run's alone: without its password it answers nothing but that it is there."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from flows.prefect_server import EmbeddedServer


def test_it_asks_for_a_password_and_its_own_client_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "for:another server")
    from prefect import flow
    from prefect.settings import temporary_settings

    server = EmbeddedServer()
    server.start()
    try:
        server.wait()
        ask = {"flow_runs": {}}
        for auth in (None, ("for", "another server"), ("tokenmill", "")):
            answer = httpx.post(f"{server.url}/flow_runs/filter", json=ask, auth=auth, timeout=30)
            assert answer.status_code == 401, auth
        with temporary_settings(server.settings()):
            flow(lambda: None, name="one")()
        own = server.settings()
        auth = tuple(next(v for v in own.values() if v != server.url).split(":", 1))
        found = httpx.post(f"{server.url}/flow_runs/filter", json=ask, auth=auth, timeout=30)
        assert [run["state_type"] for run in found.json()] == ["COMPLETED"]
    finally:
        server.stop()
    assert EmbeddedServer()._auth != server._auth
