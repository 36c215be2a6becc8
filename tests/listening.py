"""Who listens where: the listening sockets of a test's own processes and of all that they start, while they run."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

MARK = "TOKENMILL_TEST_MARK"


@contextlib.contextmanager
def listening(every: float = 0.25) -> Iterator[set[tuple[str, str]]]:
    """Collects (address, command) of what listens; a process counts if its environment was inherited from here."""
    heard: set[tuple[str, str]] = set()
    mark, ended = secrets.token_hex(8), threading.Event()

    def look() -> None:
        while not ended.wait(every):
            for connection in psutil.net_connections("inet"):
                with contextlib.suppress(psutil.Error, OSError):
                    if connection.status != psutil.CONN_LISTEN or connection.pid in (None, os.getpid()):
                        continue
                    # (psutil's `environ` stops where a process has put its title.)
                    if f"{MARK}={mark}".encode() in Path(f"/proc/{connection.pid}/environ").read_bytes():
                        heard.add((str(connection.laddr[0]), " ".join(psutil.Process(connection.pid).cmdline())))

    os.environ[MARK] = mark
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        ended.set()
        thread.join()
        del os.environ[MARK]


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback
