"""Who listens where: the listening sockets of all that a test starts, while it runs."""

from __future__ import annotations

import contextlib
import ipaddress
import threading
from collections.abc import Iterator

import psutil


@contextlib.contextmanager
def listening(every: float = 0.25) -> Iterator[set[tuple[str, str]]]:
    """Collects (address, command) of what listens among this process's descendants."""
    heard: set[tuple[str, str]] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(every):
            ours = {child.pid: child for child in psutil.Process().children(recursive=True)}
            for connection in psutil.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN and connection.pid in ours:
                    with contextlib.suppress(psutil.Error):
                        command = [ours[connection.pid].name(), *ours[connection.pid].cmdline()]
                        heard.add((str(connection.laddr[0]), " ".join(command)))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        ended.set()
        thread.join()


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback
