"""Where the ranks of a training meet: on the address that is theirs, and on no other."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import psutil
import pytest

from cluster.train import rendezvous


def loopback() -> str:
    """The name of this machine's loopback interface."""
    return next(name for name, found in rendezvous.addresses().items() if "127.0.0.1" in found)


def test_the_store_listens_on_the_interface_that_is_named_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import TCPStore

    monkeypatch.setattr(rendezvous, "_kept", [])
    host, port = rendezvous._listen(loopback(), 10)
    mine = [c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert [tuple(at) for at in mine if at[1] == port] == [("127.0.0.1", port)]
    client = TCPStore(host, port, None, False, timedelta(seconds=10))
    client.set("said", "by a client")
    assert rendezvous._kept[0].get("said") == b"by a client"


def test_an_interface_that_is_not_there_is_refused_with_those_that_are() -> None:
    refusal = rendezvous._refusal("nope0")
    assert refusal and "'nope0'" in refusal and loopback() in refusal
    assert rendezvous._refusal(loopback()) is None and rendezvous._refusal(None) is None


@pytest.mark.parametrize(
    ("interface", "own", "gloo", "nccl"),
    [
        (None, "127.0.0.1", "lo", "lo"),  # Ray was started on this machine
        (None, "10.0.0.7", "eth0", None),  # a cluster's: NCCL finds the fast interfaces itself
        ("ib0", "10.0.0.7", "ib0", "ib0"),
        (None, "head.example", None, None),  # Ray was told a name, or an address that no interface has
    ],
)
def test_gloo_and_nccl_take_the_same_interface(
    monkeypatch: pytest.MonkeyPatch, interface: str | None, own: str, gloo: str | None, nccl: str | None
) -> None:
    import ray

    known = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.7"], "ib0": ["192.168.0.7"]}
    given: list[Any] = []
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that what is set is undone
        monkeypatch.delenv(name)
    for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(rendezvous, "addresses", lambda: known)
    monkeypatch.setattr(rendezvous, "_setup_torch_process_group", lambda *arguments: given.append(arguments))
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: own)
    rendezvous._meet(own, 7, interface, "gloo", 1, 2, 30)
    assert (os.environ.get("GLOO_SOCKET_IFNAME"), os.environ.get("NCCL_SOCKET_IFNAME")) == (gloo, nccl)
    assert given == [("gloo", 1, 2, "env://", 30)]


def test_what_the_user_has_set_for_gloo_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib1")
    for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(rendezvous, "_setup_torch_process_group", lambda *arguments: None)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    rendezvous._meet("127.0.0.1", 7, None, "gloo", 0, 1, 30)
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("ib0", "ib1")
