"""A TCP proxy that fails on purpose, in front of a real server: each request meets the next failure of a schedule."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Iterable
from urllib.parse import urlsplit

OK = "ok"
RESET = "reset"  # before the request reaches the server
BUSY = "busy"  # 503 Slow Down
CUT = "cut"  # the answer breaks off in its body
LOST = "lost"  # the server does what it was asked, and the answer never arrives
_BUSY_ANSWER = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: 66\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>later, please</Message></Error>"[:66]
)


class FlakyProxy:
    """`with FlakyProxy(endpoint, [OK, RESET, …]) as proxy`: the schedule repeats; `proxy.failures` counts."""

    def __init__(self, endpoint: str, schedule: Iterable[str]):
        parts = urlsplit(endpoint)
        self._target = (parts.hostname, parts.port)
        self._schedule = itertools.cycle(schedule)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.failures: list[str] = []

    def __enter__(self) -> FlakyProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request, then the connection is closed: the signature covers neither, so both sides accept it."""
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                data = client.recv(65536)
                if not data:
                    return
                head += data
            with self._lock:
                mode = next(self._schedule)
                if mode != OK:
                    self.failures.append(mode)
            if mode == RESET:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            if mode == BUSY:
                client.sendall(_BUSY_ANSWER)
                return
            with socket.create_connection(self._target) as server:
                server.sendall(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                threading.Thread(target=_pump, args=(client, server), daemon=True).start()
                while data := server.recv(65536):
                    if data.startswith(b"HTTP/1.1 100"):  # "go on": the answer comes later
                        client.sendall(data)
                    elif mode == LOST:
                        while server.recv(65536):
                            pass
                        break
                    else:
                        client.sendall(data[:-1] if mode == CUT else data)
                with contextlib.suppress(OSError):  # closing alone says nothing while the pump still reads
                    client.shutdown(socket.SHUT_RDWR)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
