"""An address of a Ray cluster is known to be wrong, or dead, before any work and in seconds."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from cluster import ray_address
from cluster.errors import UserError
from cluster.ray_address import check_address, parse_address
from cluster.session import ClusterConfig, Session


@pytest.mark.parametrize(
    "address",
    [
        "nonsense",
        "host:",
        ":6379",
        "host:port",
        "host:0",
        "host:99999",
        "a b:1",
        "host:6379:1",
        "tcp://h:1",
        "h:1/x",
        "[x]:1",
    ],
)
def test_what_is_no_address_says_so_and_what_would_be_one(address: str) -> None:
    with pytest.raises(UserError, match=r"RAY_ADDRESS is .* no address .*host:port"):
        check_address(address, "RAY_ADDRESS")


def test_where_jobs_are_submitted_can_t_be_joined() -> None:
    with pytest.raises(UserError, match="ray job submit"):
        check_address("http://127.0.0.1:8265", "RAY_ADDRESS")


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("10.0.0.1:6379", ("10.0.0.1", 6379)), ("head-1.local:6379", ("head-1.local", 6379)),
        ("[::1]:6379", ("::1", 6379)),
        ("ray://head:10002", ("head", 10002)), ("ray://head", ("head", 10001)),
    ],
)  # fmt: skip
def test_the_forms_that_ray_takes(address: str, place: tuple[str, int]) -> None:
    assert parse_address(address, "RAY_ADDRESS") == place


def test_a_dead_address_is_told_at_once_with_the_variable_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    begun = time.monotonic()
    for ask in (Session().check, Session().ensure):
        with pytest.raises(UserError, match=r"RAY_ADDRESS is '127.0.0.1:9', and no Ray cluster answers .*refused"):
            ask()
    assert time.monotonic() - begun < ray_address.SECONDS
    with pytest.raises(UserError, match=r"\[cluster\] address is"):
        Session(ClusterConfig.model_validate({"address": "127.0.0.1:9"})).check()


@pytest.mark.parametrize("host", ["head..local", "." + "a" * 64, "a" * 300])
def test_a_name_that_no_host_has_is_told(host: str) -> None:
    with pytest.raises(UserError, match="no host has such a name"):
        check_address(f"{host}:6379", "RAY_ADDRESS")


def test_a_port_that_listens_and_is_no_ray_s_is_told_in_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(UserError, match="nothing answers within"):
        check_address(f"127.0.0.1:{deaf.getsockname()[1]}", "RAY_ADDRESS")
    web = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    with pytest.raises(UserError, match="is no Ray"):
        check_address(f"127.0.0.1:{web.server_port}", "RAY_ADDRESS")
    web.shutdown()
    web.server_close()


@pytest.mark.parametrize("answer", ["yes", "a token is wanted", "never heard of it"])
def test_a_head_is_known_by_what_it_can_be_asked(answer: str) -> None:
    def ask(_request: bytes, context: grpc.ServicerContext) -> bytes:
        if answer == "a token is wanted":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, answer)
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    if answer != "never heard of it":
        handlers = {"GetClusterId": grpc.unary_unary_rpc_method_handler(ask)}
        known = grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", handlers)
        server.add_generic_rpc_handlers((known,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        if answer == "never heard of it":
            with pytest.raises(UserError, match="is no Ray"):
                check_address(f"127.0.0.1:{port}", "RAY_ADDRESS")
        else:
            check_address(f"127.0.0.1:{port}", "RAY_ADDRESS")
        check_address(f"ray://127.0.0.1:{port}", "RAY_ADDRESS")  # another service, which is asked other things
    finally:
        server.stop(None)


def test_inside_a_job_ray_s_own_word_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    Session().check()


def test_local_means_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert Session().address is None
