"""One server of Swift in this process, with its configuration outside /etc. Run by serve.py, in .venv-s3:

python swift_process.py rings FOLDER account=PORT container=PORT object=PORT
python swift_process.py serve FOLDER account|container|object|proxy PARENT_PID
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def make_rings(folder: str, servers: list[str]) -> int:
    """Which server holds what: 2^4 partitions, one replica, one device for each kind of server."""
    from swift.common.ring.builder import RingBuilder

    for server in servers:
        kind, port = server.split("=")
        builder = RingBuilder(4, 1, 1)
        builder.add_dev(
            {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1.0}
            | {"replication_ip": "127.0.0.1", "replication_port": int(port), "meta": ""}
        )
        builder.rebalance(seed=1)
        builder.get_ring().save(str(Path(folder, f"{kind}.ring.gz")))
    return 0


def serve(folder: str, kind: str, parent: int) -> int:
    # However serve.py ends, its servers end with it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return 0

    from swift.common import utils

    utils.SWIFT_CONF_FILE = str(Path(folder, "swift.conf"))  # fixed to /etc/swift otherwise
    utils.validate_hash_conf()

    from swift.common import constraints
    from swift.common.wsgi import run_wsgi

    constraints.reload_constraints()
    return run_wsgi(str(Path(folder, f"{kind}.conf")), f"{kind}-server")


if __name__ == "__main__":
    action, folder, *rest = sys.argv[1:]
    sys.exit(make_rings(folder, rest) if action == "rings" else serve(folder, rest[0], int(rest[1])))
