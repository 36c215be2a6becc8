"""Tracking is tested in a store of its own, with nothing configured but what a test sets."""

import pytest
from tiny_mlflow import sqlite_place

from cluster.tracking.place import Place


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def place(tmp_path) -> Place:
    return sqlite_place(tmp_path)
