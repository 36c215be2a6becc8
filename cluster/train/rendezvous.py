"""Where the ranks of a training meet: one address, not every one of the machine.

    rank 0     binds a socket to the address, and keeps torch's store on it
    all ranks  are clients of that store; gloo and NCCL take the same network interface

Neither torch's store nor gloo and NCCL ask for a password: whoever reaches their ports can join. Ray Train would have
rank 0 listen on all addresses, and gloo on whichever the machine's name stands for.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

from ray.train.torch.config import (
    TorchConfig,
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)

from cluster.errors import UserError

_kept: list[Any] = []  # rank 0's store, which lives as long as its process


@dataclass
class Rendezvous(TorchConfig):
    """Ray Train's config of torch.distributed, with the network interface that the ranks meet on.

    Args:
        interface: its name, the same on every machine (`eth0`); None: that of Ray's own address, loopback where Ray was
            started on this machine.
    """

    interface: str | None = None

    @property
    def backend_cls(self) -> type:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Rendezvous) -> None:
        import ray

        interface = backend_config.interface
        for refusal in worker_group.execute(_refusal, interface):
            if refusal:
                raise UserError(refusal)
        host, port = worker_group.execute_single(0, _listen, interface, backend_config.timeout_s)
        worker_group.execute(_set_torch_distributed_env_vars)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _meet, host, port, interface, backend_config.backend, rank, len(worker_group),
                    backend_config.timeout_s,
                )
                for rank in range(len(worker_group))
            ]
        )  # fmt: skip


def addresses() -> dict[str, list[str]]:
    """This machine's network interfaces and their IP addresses, IPv4 first."""
    import psutil

    kinds = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [a.address.partition("%")[0] for kind in kinds for a in found if a.family == kind]
        for name, found in psutil.net_if_addrs().items()
    }


def _refusal(interface: str | None) -> str | None:
    if interface is None or addresses().get(interface):
        return None
    known = ", ".join(name for name, found in addresses().items() if found)
    return (
        f"[cluster] interface is {interface!r}, and {socket.gethostname()} has no such network interface with an "
        f"address. It has {known}."
    )


def _address(interface: str | None) -> str:
    """This rank's own."""
    import ray

    return addresses()[interface][0] if interface else ray.util.get_node_ip_address()


def _listen(interface: str | None, seconds: int) -> tuple[str, int]:
    """On rank 0: a store on a socket that is bound to one address; (address, port)."""
    from torch.distributed import TCPStore

    host = _address(interface)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family, backlog=1024)
    port = listener.getsockname()[1]
    wait = timedelta(seconds=seconds)
    _kept[:] = [TCPStore(host, port, None, True, wait, wait_for_workers=False, master_listen_fd=listener.detach())]
    return host, port


def _meet(host: str, port: int, interface: str | None, backend: str, rank: int, world_size: int, seconds: int) -> None:
    """On each rank: torch.distributed's process group, over rank 0's store."""
    own = _address(interface)
    name = interface or next((name for name, found in addresses().items() if own in found), None)
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        if interface or ip_address(own).is_loopback:  # else NCCL finds a cluster's fast ones itself
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE=str(True))  # clients all
    _setup_torch_process_group(backend, rank, world_size, "env://", seconds)
