"""The address of a Ray cluster: whether it is one, and whether a cluster answers there, within seconds.

Ray itself waits for minutes for a head that isn't there, without a word, and ends in the same way for an address that
can't be one.
"""

from __future__ import annotations

import os
import re
import socket

from cluster.errors import UserError

SECONDS = 10.0
CLIENT_PORT = 10001  # of ray://HOST
SETTINGS = 4  # the type of a frame, RFC 9113, section 6.5
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, SETTINGS, 0, 0, 0, 0, 0])  # section 3.4
FORMS = "host:port of its head (as `ray start --head` prints it), ray://host:port, or auto"
_ADDRESS = re.compile(r"(?P<client>ray://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::(?P<port>[0-9]{1,5}))?/?")


def check_address(address: str, named: str) -> None:
    """Finds out, in ten seconds at most, whether a cluster answers at an address.

    Args:
        named: what the address is from, for the message: RAY_ADDRESS, or a recipe's key.

    Raises:
        UserError: it is no address, or nothing answers there.
    """
    if address in ("auto", "local"):
        return
    host, port = parse_address(address, named)
    try:
        with socket.create_connection((host, port), timeout=SECONDS / 2) as connection:
            known = _greets(connection) and (address.startswith("ray://") or _is_head(host, port))
            problem = None if known else "what answers is no Ray"
    except TimeoutError:
        problem = f"nothing answers within {SECONDS / 2:g} s"
    except OSError as error:
        problem = str(error.strerror or error) or type(error).__name__
    except UnicodeError:  # of the names that a host's is made of, one is empty or longer than names are
        problem = "no host has such a name"
    if problem:
        raise UserError(
            f"{named} is {address!r}, and no Ray cluster answers there ({problem}). Start one with `ray start --head`, "
            f"correct {named}, or take it away to use this machine."
        )


def parse_address(address: str, named: str) -> tuple[str, int]:
    """(host, port) of an address.

    Raises:
        UserError: it is none; the message says what is.
    """
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"{named} is {address!r}: that is where jobs are submitted (`ray job submit`), and can't be joined. "
            f"Write {FORMS}."
        )
    match = _ADDRESS.fullmatch(address)
    port = int(match["port"] or (CLIENT_PORT if match["client"] else 0)) if match else 0
    if match is None or not 0 < port < 65536:
        raise UserError(f"{named} is {address!r}, which is no address of a Ray cluster. Write {FORMS}.")
    return match["host"].strip("[]"), port


def _greets(connection: socket.socket) -> bool:
    """Whether what listens greets as a gRPC server does, which Ray's heads are: by a frame of HTTP/2's settings."""
    if _uses_tls():
        return True
    connection.sendall(GREETING)
    answer = b""
    while len(answer) < 4:
        got = connection.recv(4 - len(answer))
        if not got:
            return False
        answer += got
    return answer[3] == SETTINGS


def _is_head(host: str, port: int) -> bool:
    """Whether a gRPC server knows the question that each worker asks a head first; a head may want a token for it.

    (A proxy takes every connection, and greets.)
    """
    if _uses_tls():
        return True
    try:
        import grpc  # Ray brings it
    except ImportError:
        return True
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.insecure_channel(place) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=SECONDS / 2)
        except grpc.RpcError as error:
            unknown = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            return error.code() not in unknown  # type: ignore[attr-defined]
    return True


def _uses_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() not in ("", "0", "false")
