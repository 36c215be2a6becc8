"""An MLflow that takes every request and answers none: the release waits for it in order, and Ctrl-C is heard."""

import socket
import threading
import time

import pytest
from tiny_mlflow import sqlite_place
from tiny_release import release_step

from cluster.errors import Stopped
from cluster.release import release
from cluster.release.release import still_valid
from cluster.stage import Hooks, Surroundings, run_step
from cluster.store.artifact import Artifacts
from cluster.tracking import patience
from cluster.tracking.patience import GivenUp, waited_for


@pytest.fixture
def black_hole():
    """A server's address; connections are made by the kernel, and nobody reads."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_ctrl_c_ends_a_release_at_a_hung_mlflow_with_what_is_kept(tmp_path, monkeypatch, black_hole):
    monkeypatch.setattr(patience, "STOPPED_SECONDS", 0.5)
    monkeypatch.setattr(release, "SILENT_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")
    asked, said, since = threading.Event(), [], []

    def progress(done, total, text):
        said.append(text)
        since.append(time.monotonic())
        asked.set()  # Ctrl-C, once it is said what is waited for

    artifacts = Artifacts(tmp_path / "store")
    with pytest.raises(Stopped, match=r"has not answered\. The model is kept in the store; the same command registers"):
        hooks = Hooks(progress=progress, stopping=asked.is_set)
        run_step(release_step(tracking_uri=black_hole), artifacts, Surroundings(hooks=hooks))
    assert time.monotonic() - since[0] < 60
    assert f"waiting for MLflow at {black_hole}" in said
    assert list(artifacts.manifests("model")) and not list(artifacts.manifests("release"))


def test_a_hung_mlflow_is_an_infrastructure_fault_that_says_what_is_kept(tmp_path, monkeypatch, black_hole):
    from cluster.registry import rest_reader

    monkeypatch.setattr(rest_reader, "SECONDS", 0.3)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConnectionError, match=r"does not answer .* The model is kept in the store; the same command"):
        run_step(release_step(tracking_uri=black_hole), Artifacts(tmp_path / "store"))


def test_whether_a_release_is_still_there_is_asked_for_seconds_at_most(tmp_path, monkeypatch, black_hole):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sqlite_place(tmp_path)
    made = run_step(release_step(), Artifacts(tmp_path / "store")).artifact
    monkeypatch.setattr(release, "ASK_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")
    begun = time.monotonic()
    assert still_valid(made, release_step(tracking_uri=black_hole).config)
    assert time.monotonic() - begun < 60


def test_what_is_waited_for_returns_raises_and_is_given_up_in_its_own_time(monkeypatch):
    assert waited_for(lambda: 3) == 3
    with pytest.raises(LookupError, match="no such"):
        waited_for(lambda: {}["no such"])
    with pytest.raises(GivenUp):
        waited_for(lambda: time.sleep(30), seconds=0.2)
    nearly = threading.Event()
    assert waited_for(lambda: nearly.wait(10), stopping=lambda: nearly.set() or True)  # done before it is given up
