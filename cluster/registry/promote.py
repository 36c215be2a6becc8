"""Changes of what a registered model's names point to: one at a time, and each leaves its trace.

    alone(place, NAME)      from the look at what is there to the last change: no other process of this machine
    promote(version)        @champion, read back; tags on both versions say when and in whose place

MLflow's aliases have no compare-and-set and no history. Processes of one machine take turns by a lock file; of two
machines at one server the second to set an alias wins, and the first finds that out when it reads it back.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from cluster.errors import Stopped
from cluster.registry.versions import CHAMPION, TAG, Registry, Version
from cluster.tracking.place import Place, locked

POLL_SECONDS = 0.1


@contextmanager
def alone(place: Place, name: str, stopping: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Hold the model's lock, which falls free when its owner dies.

    Raises:
        Stopped: `stopping` turned true while another process held it.
    """
    folder = place.database.parent if place.database else place.state
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".release-{hashlib.sha256(name.encode()).hexdigest()[:12]}.lock"
    while True:
        with locked(path, wait=False) as held:
            if held:
                yield
                return
        if stopping():
            raise Stopped(f"stopped while another release of {name} is at work")
        time.sleep(POLL_SECONDS)


def champion_of(registry: Registry, name: str) -> Version | None:
    """The model's champion, if it has one."""
    try:
        return registry.get(f"models:/{name}@{CHAMPION}")
    except LookupError:
        return None


def promote(registry: Registry, version: Version, before: Version | None) -> None:
    """Make `version` the champion in place of `before` (None: there was none).

    Raises:
        RuntimeError: another release set the champion at the same time; running again decides anew.
    """
    client, number = registry.client, str(version.version)
    client.set_registered_model_alias(version.name, CHAMPION, number)
    now = champion_of(registry, version.name)
    if now is None or now.version != version.version:
        raise RuntimeError(
            f"Version {now.version if now else '?'} of {version.name} took @{CHAMPION} at the same moment. "
            f"Run the same command again: the gate then compares with that one."
        )
    when = datetime.now(UTC).isoformat(timespec="seconds")
    client.set_model_version_tag(version.name, number, f"{TAG}promoted", when)
    client.set_model_version_tag(version.name, number, f"{TAG}previous_champion", before.uri if before else "")
    if before is not None:
        client.set_model_version_tag(version.name, str(before.version), f"{TAG}succeeded", when)
        client.set_model_version_tag(version.name, str(before.version), f"{TAG}succeeded_by", version.uri)
