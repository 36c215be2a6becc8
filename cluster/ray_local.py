"""A Ray of this machine alone: on loopback, with a token of its own for each run, in a folder of this user's.

Ray turns 127.0.0.1 back into the machine's outer address and listens on all of them, unless it may be no cluster: that
is its own mode for laptops, in which everything that it starts listens on loopback. The token keeps other users of the
machine from submitting work; a user's own authentication settings are left as they are.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import psutil

from cluster.cache import own_temporary

LOOPBACK = "127.0.0.1"
# Read by Ray when it is imported or started. Nobody scrapes its metrics, and gathering them costs every process some of
# a small machine; and its workers are what the machine is for, so they don't yield to everything else (Ray would make
# them nice by 15). What the user has set wins.
DEFAULTS = {"RAY_enable_metrics_collection": "false", "RAY_worker_niceness": "0"}
NO_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # by its name for two systems, and read on each
# In this process alone: else C++ ends it a minute after a head has gone (its default, for what Ray.init has begun with
# before SYSTEM_CONFIG is known), also where another Ray has taken the place of the lost one. ray_watch.py sees to that.
OURS = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(24 * 3600)}
# Ray's sockets are FOLDER/session_2026-11-26_20-25-04_123456_4194304/sockets/plasma_store; Linux takes 107 bytes.
LONGEST_FOLDER = 107 - len("/session_2026-11-26_20-25-04_123456_4194304/sockets/plasma_store.12345")


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Within this Ray is started here; its processes inherit the environment. An imported Ray is told as well."""
    for key, value in DEFAULTS.items():
        os.environ.setdefault(key, value)
    if "RAY_AUTH_MODE" not in os.environ:
        # Ray's default would write one token into the home folder and keep it.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    _tell()
    from ray._private import ray_constants

    before = os.environ.get(NO_CLUSTER), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[NO_CLUSTER], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:  # this process may join a cluster later
        del os.environ[NO_CLUSTER]
        if before[0] is not None:
            os.environ[NO_CLUSTER] = before[0]
        ray_constants.ENABLE_RAY_CLUSTER = before[1]


def _tell() -> None:
    """Let an imported Ray read the environment anew, with OURS in it, which nothing that it starts inherits."""
    from ray._raylet import Config  # type: ignore  (Cython: no stubs)

    ours = {name: value for name, value in OURS.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        Config.initialize("")
    finally:
        for name in ours:
            del os.environ[name]


def end_started(before: set[int]) -> None:
    """End what a start of Ray that failed has left running: this process's children but those of `before`.

    Only Ray's are meant, which are programs of its package. Those started before it, and all else, live on.
    """
    import ray

    package = str(Path(ray.__file__).parent)
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.pid not in before and any(word.startswith(package) for word in child.cmdline()):
                for one in [*child.children(recursive=True), child]:
                    with contextlib.suppress(psutil.Error):
                        one.kill()


def folder() -> Path | None:
    """Where Ray keeps its sessions, with logs and sockets; None: where the user has said, by RAY_TMPDIR.

    Raises:
        UserError: the folder that would be this user's is somebody else's.
    """
    if os.environ.get("RAY_TMPDIR"):
        return None
    found = own_temporary() / "ray"
    if len(os.fsencode(found)) > LONGEST_FOLDER:  # of a temporary folder deep in a batch system's
        found = own_temporary(Path("/tmp")) / "ray"
    found.mkdir(mode=0o700, exist_ok=True)
    return found
