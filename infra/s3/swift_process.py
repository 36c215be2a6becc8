"""All servers of Swift, with their configuration outside /etc. Run by serve.py, in .venv-s3:

python swift_process.py FOLDER account=PORT container=PORT object=PORT proxy=PORT

Swift is imported once and each server is a fork of this process, which ends when serve.py does, and they with it.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """However the parent ends, this process is told to end too."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(0)


def make_ring(folder: str, kind: str, port: int) -> None:
    """Which server holds what: 2^4 partitions, one replica, one device."""
    from swift.common.ring.builder import RingBuilder

    builder = RingBuilder(4, 1, 1)
    builder.add_dev(
        {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "d1", "weight": 1.0}
        | {"replication_ip": "127.0.0.1", "replication_port": port, "meta": ""}
    )
    builder.rebalance(seed=1)
    builder.get_ring().save(str(Path(folder, f"{kind}.ring.gz")))


def serve(folder: str, kind: str) -> int:
    from swift.common.wsgi import run_wsgi

    return run_wsgi(str(Path(folder, f"{kind}.conf")), f"{kind}-server")


def main(folder: str, servers: list[str]) -> int:
    end_with_parent(os.getppid())

    from swift.common import utils

    utils.SWIFT_CONF_FILE = str(Path(folder, "swift.conf"))  # fixed to /etc/swift otherwise
    utils.validate_hash_conf()

    from swift.common import constraints

    constraints.reload_constraints()
    for module in ("swift.account.server", "swift.container.server", "swift.obj.server", "swift.proxy.server"):
        __import__(module)  # once, for all the forks

    me, children = os.getpid(), []
    for server in servers:
        kind, port = server.split("=")
        if kind != "proxy":
            make_ring(folder, kind, int(port))
    for server in servers:
        child = os.fork()
        if child == 0:
            end_with_parent(me)
            os._exit(serve(folder, server.split("=")[0]))
        children.append(child)

    def stop(number, frame):
        for child in children:
            os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a person's Ctrl-C is serve.py's to act on
    ended, _ = os.wait()  # also where one fails: without it the others are of no use
    children.remove(ended)
    stop(0, None)
    for child in list(children):
        os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
