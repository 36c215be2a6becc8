"""Prefect's embedded API, where no server is configured: a child process on loopback, its chatter in the log file.

It asks for a password that is this run's own: loopback is open to every user of a machine.

Prefect starts one itself, but in the terminal's process group, so that Ctrl-C takes the server away from the run that
is about to write its checkpoint; it also outlives a killed parent, and it starts only when the flow does. This one has
a session of its own, ends when the pipe from its parent closes (however the parent ended), and starts while other
things do.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

START_SECONDS = 300  # the very first start also makes Prefect's database


def provide_home() -> None:
    """A PREFECT_HOME for this process and its children where none is set and the user's home can't be written.

    What is in it is not for keeping: nothing that the line needs is in Prefect's database. To be called before Prefect
    is imported.
    """
    from cluster.cache import own_temporary, writable  # not above: the child runs this file with nothing else

    if "PREFECT_HOME" in os.environ:
        return
    try:
        usable = writable(Path("~/.prefect").expanduser())
    except RuntimeError:  # no home at all
        usable = False
    if not usable:
        home = own_temporary() / "prefect"
        home.mkdir(exist_ok=True)
        os.environ["PREFECT_HOME"] = str(home)


def odd_database() -> dict[str, str]:
    """The setting for Prefect's database, where SQLAlchemy would read its home's path as another: % and ? in it."""
    path = str(Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser().absolute() / "prefect.db")
    quoted = path.replace("%", "%25").replace("?", "%3F")
    return {} if quoted == path else {"PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{quoted}"}


def configured_api() -> str | None:
    """The Prefect server that the user has set, by environment or by the active profile; None: embedded."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    try:
        profiles = tomllib.loads(path.read_text(encoding="utf-8"))
        active = os.environ.get("PREFECT_PROFILE") or profiles["active"]
        return profiles["profiles"][active].get("PREFECT_API_URL")
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return None


class EmbeddedServer:
    """A Prefect API of this run's own.

    Args:
        password: what it asks its callers for, "" for nothing; default: a random one.
    """

    def __init__(self, password: str | None = None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        password = secrets.token_urlsafe(32) if password is None else password
        self._auth = f"tokenmill:{password}" if password else ""  # user:password, as HTTP's basic scheme has it
        self.url = ""
        self.answered = False

    def ended(self) -> bool:
        """Whether its process is gone, by itself or by whomever."""
        return self._process is not None and self._process.poll() is not None

    def settings(self) -> dict[Any, str]:
        """Prefect's settings with which this process is its client; to be asked after `start`."""
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

        return {PREFECT_API_URL: self.url, **({PREFECT_API_AUTH_STRING: self._auth} if self._auth else {})}

    def start(self) -> None:
        """Begin; `wait` says when it answers. Its output goes where this process's stderr goes."""
        provide_home()
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)  # handed over: no other process takes the port
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        env = {
            **odd_database(),
            **os.environ,
            "PREFECT_UI_ENABLED": "0",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
        }
        for name in ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"):  # not those of a user's own server
            env.pop(name, None)
            if self._auth:
                env[name] = self._auth  # which only this user's processes can read there
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve()), str(listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=2,
            stderr=2,
            env=env,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        listener.close()

    def wait(self, stopping: Callable[[], bool] = lambda: False) -> str | None:
        """The API's URL once it answers; None if `stopping` turned true before.

        Raises:
            ConnectionError: it ended or did not answer in time.
        """
        assert self._process is not None, "start() first"
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if stopping():
                return None
            if self._process.poll() is not None:
                raise ConnectionError(
                    f"Prefect's embedded API ended with code {self._process.returncode}; the log file says "
                    "why. Set PREFECT_API_URL to use a server of your own."
                )
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer,
            ):
                if answer.status == 200:
                    self.answered = True
                    return self.url
            time.sleep(0.1)
        raise ConnectionError(f"Prefect's embedded API did not answer in {START_SECONDS} s.")

    def stop(self, at_once: bool = False) -> None:
        """End it: by itself within some seconds, or at once."""
        if self._process is None:
            return
        process, self._process = self._process, None
        with contextlib.suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]
        try:
            process.wait(0 if at_once else 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _serve(fd: int) -> None:
    """The child: serve on the parent's socket until its pipe closes."""
    import fcntl
    import signal
    import threading

    import uvicorn
    from prefect.settings import get_current_settings

    class Server(uvicorn.Server):
        """Starts while no other of this user's does: two that both make Prefect's database would break it."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            home = get_current_settings().home
            home.mkdir(parents=True, exist_ok=True)
            with (home / "tokenmill-start.lock").open("a", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it, however the process ends
                await super().startup(sockets)

    def watch() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(4)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        log_level="error",
        lifespan="on",
        timeout_graceful_shutdown=2,
    )
    Server(config).run(sockets=[socket.socket(fileno=fd)])


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
