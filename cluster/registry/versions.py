"""The registry: what is registered, under which aliases, how it scored, where it came from.

    models:/NAME ── alias ─▶ version ── tags ─▶ metrics, gate, fingerprint, lineage
                                └── location ─▶ the files

Reading needs no MLflow where that can be (reader.py says how and why); writing is MLflow's client's.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlparse

from cluster.errors import Missing, UserError, nearest
from cluster.registry.client_reader import ClientReader
from cluster.registry.reader import Reader, Record, Unsure
from cluster.tracking.place import Place, answering, connect, locate

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "tokenmill."
T = TypeVar("T")
_log = logging.getLogger(__name__)
CHAMPION, CANDIDATE = "champion", "candidate"
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))?/?")


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    version: int
    aliases: tuple[str, ...]
    metrics: dict[str, float]
    gate: str  # "passed", "failed" or "" for a model that no release stage registered
    reason: str
    fingerprint: str
    recipe: str
    lineage: dict[str, str] = field(default_factory=dict)  # step -> "kind/fingerprint", inputs first
    parameters: int = 0
    created: int = 0  # Unix time in milliseconds
    run_id: str = ""
    source: str = ""
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"

    @property
    def base(self) -> str:
        """The model that its line began with; "" for one that was trained from its start."""
        return self.tags.get(f"{TAG}base", "")


class Registry:
    """Look-ups in one MLflow's registry, by the quickest reader that knows the answer (reader.py).

    Args:
        place: where MLflow is; default: that of the folder `store` in the working folder.

    Raises:
        LookupError: at a look-up, if there is no MLflow database there. None is made.
        ConnectionError: at a look-up, if the server doesn't answer.
    """

    def __init__(self, place: Place | None = None):
        self.place = place or locate()

    @property
    def client(self) -> MlflowClient:
        """MLflow's own, to write with."""
        self._exists()
        return connect(self.place.uri)

    def names(self) -> list[str]:
        """All registered models."""
        return self._ask(lambda reader: sorted(reader.names()))

    def versions(self, name: str) -> list[Version]:
        """A model's versions, newest first.

        Raises:
            LookupError: no such model; the message has the nearest names.
        """

        def look(reader: Reader) -> list[Version]:
            aliases = _aliases(reader, name)
            return sorted((_version(v, aliases) for v in reader.versions(name)), key=lambda v: -v.version)

        return self._ask(look)

    def get(self, uri: str) -> Version:
        """The version that `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/NAME` (its champion) names.

        Raises:
            ValueError: not of these forms.
            LookupError: no such model, version or alias; the message has those that there are.
        """
        name, alias, number = parse(uri)

        def look(reader: Reader) -> Version:
            aliases = _aliases(reader, name)
            wanted = aliases.get(alias or CHAMPION) if number is None else number
            if wanted is None:
                there = ", ".join(f"@{a}" for a in sorted(aliases)) or "none"
                raise Missing(f"Model {name!r} has no alias @{alias or CHAMPION}; it has {there}.")
            found = reader.version(name, wanted)
            if found is None:
                there = ", ".join(str(n) for n in sorted((v.version for v in reader.versions(name)), reverse=True))
                raise Missing(f"Model {name!r} has no version {wanted}; it has {there or 'none'}.")
            return _version(found, aliases)

        return self._ask(look)

    def find(self, name: str, fingerprint: str) -> Version | None:
        """The version that was registered for a release stage's fingerprint; of two the first."""

        def look(reader: Reader) -> Version | None:
            found = reader.versions(name, (f"{TAG}fingerprint", fingerprint))
            return _version(min(found, key=lambda v: v.version), _aliases(reader, name)) if found else None

        return self._ask(look)

    def location(self, version: Version) -> str:
        """URI of the folder that holds the version's MLflow model."""
        return self._ask(lambda reader: reader.location(version.name, version.version))

    def local_files(self, version: Version) -> Path | None:
        """That folder, if it is on this machine."""
        uri = self.location(version)
        parsed = urlparse(uri)
        path = Path(unquote(parsed.path) if parsed.scheme == "file" else uri)
        return path if parsed.scheme in ("", "file") and path.is_dir() else None

    def _ask(self, look: Callable[[Reader], T]) -> T:
        self._exists()
        quick = _quick_reader(self.place)
        if quick is not None:
            try:
                return look(quick)
            except Unsure as error:
                _log.debug("MLflow's client is asked, not %s: %s", type(quick).__name__, error)
        with answering(self.place.uri):
            return look(ClientReader(self.client))

    def _exists(self) -> None:
        database = self.place.database
        if database is not None and not database.exists():
            raise Missing(
                f"There is no MLflow database {database}: nothing has been registered from here. "
                f"Go to the folder that holds the store, or set MLFLOW_TRACKING_URI."
            )


def _quick_reader(place: Place) -> Reader | None:
    """A reader that needs no MLflow; None where only its client knows the way."""
    if os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_ENABLE_WORKSPACES"):
        return None
    if place.database is not None:
        from cluster.registry.sqlite_reader import SqliteReader

        return SqliteReader(place.database)
    if place.is_server:
        from cluster.registry.rest_reader import RestReader, can_ask

        return RestReader(place.uri) if can_ask(os.environ) else None
    return None


def _aliases(reader: Reader, name: str) -> dict[str, int]:
    aliases = reader.aliases(name)
    if aliases is None:
        raise Missing(f"No model {name!r} is registered. {like(name, sorted(reader.names()))}")
    return aliases


def parse(uri: str) -> tuple[str, str | None, int | None]:
    """(name, alias, version) of a models:/ URI. Raises ValueError."""
    match = _URI.fullmatch(uri)
    version = match["version"] if match else None
    if not match or (version is not None and not version.isdecimal()):
        raise UserError(f"{uri!r} names no model. Write models:/NAME@ALIAS or models:/NAME/VERSION (a number).")
    return match["name"], match["alias"], int(version) if version else None


def like(name: str, known: list[str]) -> str:
    """The names like `name`, or all of a few, as the end of a message."""
    close = nearest(name, known, 3, 0.4)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"There are: {', '.join(known[:10])}{', …' if len(known) > 10 else ''}." if known else "There is none yet."


def _version(found: Record, aliases: dict[str, int]) -> Version:
    tags = dict(found.tags)
    return Version(
        name=found.name,
        version=found.version,
        aliases=tuple(sorted(a for a, v in aliases.items() if v == found.version)),
        metrics=_json(tags.get(f"{TAG}metrics"), {}),
        gate=tags.get(f"{TAG}gate", ""),
        reason=tags.get(f"{TAG}gate.reason", ""),
        fingerprint=tags.get(f"{TAG}fingerprint", ""),
        recipe=tags.get(f"{TAG}recipe", ""),
        lineage=_json(tags.get(f"{TAG}lineage"), {}),
        parameters=_json(tags.get(f"{TAG}parameters"), 0),
        created=found.created,
        run_id=found.run_id,
        source=found.source,
        description=found.description,
        tags=tags,
    )


def _json(text: str | None, default: T) -> T:
    try:
        value = json.loads(text) if text else default
    except ValueError:
        return default
    return value if isinstance(value, type(default)) else default  # a person may have written the tag
