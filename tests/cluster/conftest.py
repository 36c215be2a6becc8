"""One Ray for all tests of the session that need one."""

from __future__ import annotations

import logging
import os

import pytest

from cluster.ray_local import LOOPBACK, starting


@pytest.fixture(scope="session")
def ray_local():
    """A local Ray with two CPUs, started once; without authentication, on loopback."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    import ray

    started = not ray.is_initialized()
    if started:
        with starting():
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=200 << 20,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address=LOOPBACK,
            )
    yield ray
    if started:
        ray.shutdown()


@pytest.fixture
def fresh_process(monkeypatch):
    """The test begins as a process does: no artifact has been verified."""
    from cluster.store import folder

    monkeypatch.setattr(folder, "_verified", set())
