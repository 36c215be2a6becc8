"""The registry: what is registered, under which aliases, how it scored, where it came from.

MLflow 3.17's `search_model_versions` returns versions without their aliases (mlflow#16734), so aliases are read from
the registered model.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import unquote, urlparse

from cluster.errors import Missing, UserError, nearest
from cluster.tracking.place import Place, answering, connect, locate

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

TAG = "tokenmill."
P = ParamSpec("P")
T = TypeVar("T")
CHAMPION, CANDIDATE = "champion", "candidate"
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))?/?")


def _answering(method: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(method)
    def wrapped(*args: P.args, **kw: P.kwargs) -> T:
        registry: Any = args[0]
        with answering(registry.place.uri):
            return method(*args, **kw)

    return wrapped


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


class Registry:
    """Look-ups in one MLflow's registry.

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
        database = self.place.database
        if database is not None and not database.exists():
            raise Missing(
                f"There is no MLflow database {database}: nothing has been registered from here. "
                f"Go to the folder that holds the store, or set MLFLOW_TRACKING_URI."
            )
        return connect(self.place.uri)

    @_answering
    def names(self) -> list[str]:
        """All registered models."""
        client, names, token = self.client, [], None
        while True:
            page = client.search_registered_models(max_results=100, page_token=token)
            names += [m.name for m in page]
            token = page.token
            if not token:
                return sorted(names)

    @_answering
    def versions(self, name: str) -> list[Version]:
        """A model's versions, newest first.

        Raises:
            LookupError: no such model; the message has the nearest names.
        """
        aliases = self._aliases(name)
        found, token = [], None
        while True:
            page = self.client.search_model_versions(f"name='{_quoted(name)}'", max_results=200, page_token=token)
            found += [_version(v, aliases) for v in page]
            token = page.token
            if not token:
                return sorted(found, key=lambda v: -v.version)

    @_answering
    def get(self, uri: str) -> Version:
        """The version that `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/NAME` (its champion) names.

        Raises:
            ValueError: not of these forms.
            LookupError: no such model, version or alias; the message has those that there are.
        """
        name, alias, version = parse(uri)
        aliases = self._aliases(name)
        if version is None:
            alias = alias or CHAMPION
            if alias not in aliases:
                there = ", ".join(f"@{a}" for a in sorted(aliases)) or "none"
                raise Missing(f"Model {name!r} has no alias @{alias}; it has {there}.")
            version = aliases[alias]
        from mlflow.exceptions import MlflowException

        try:
            return _version(self.client.get_model_version(name, str(version)), aliases)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            there = ", ".join(str(v.version) for v in self.versions(name)) or "none"
            raise Missing(f"Model {name!r} has no version {version}; it has {there}.") from None

    @_answering
    def find(self, name: str, fingerprint: str) -> Version | None:
        """The version that was registered for a release stage's fingerprint."""
        condition = f"name='{_quoted(name)}' and tags.`{TAG}fingerprint` = '{fingerprint}'"
        found = self.client.search_model_versions(condition, max_results=10)
        return _version(found[0], self._aliases(name)) if found else None

    @_answering
    def local_files(self, version: Version) -> Path | None:
        """The MLflow model's folder, if its files are on this machine."""
        uri = self.client.get_model_version_download_uri(version.name, str(version.version))
        if uri.startswith("models:/m-"):
            uri = self.client.get_logged_model(uri.removeprefix("models:/")).artifact_location
        parsed = urlparse(uri)
        path = Path(unquote(parsed.path) if parsed.scheme == "file" else uri)
        return path if parsed.scheme in ("", "file") and path.is_dir() else None

    def _aliases(self, name: str) -> dict[str, int]:
        from mlflow.exceptions import MlflowException

        try:
            aliases = self.client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise Missing(_unknown(name, self.names())) from None
        return {a: int(v) for a, v in aliases.items()}


def parse(uri: str) -> tuple[str, str | None, int | None]:
    """(name, alias, version) of a models:/ URI. Raises ValueError."""
    match = _URI.fullmatch(uri)
    version = match["version"] if match else None
    if not match or (version is not None and not version.isdigit()):
        raise UserError(f"{uri!r} names no model. Write models:/NAME@ALIAS or models:/NAME/VERSION (a number).")
    return match["name"], match["alias"], int(version) if version else None


def like(name: str, known: list[str]) -> str:
    """The names like `name`, or all of a few, as the end of a message."""
    close = nearest(name, known, 3, 0.4)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"There are: {', '.join(known[:10])}{', …' if len(known) > 10 else ''}." if known else "There is none yet."


def _unknown(name: str, known: list[str]) -> str:
    return f"No model {name!r} is registered. {like(name, known)}"


def _version(found: ModelVersion, aliases: dict[str, int]) -> Version:
    tags = dict(found.tags)
    number = int(found.version)
    return Version(
        name=found.name,
        version=number,
        aliases=tuple(sorted(a for a, v in aliases.items() if v == number)),
        metrics=_json(tags.get(f"{TAG}metrics"), {}),
        gate=tags.get(f"{TAG}gate", ""),
        reason=tags.get(f"{TAG}gate.reason", ""),
        fingerprint=tags.get(f"{TAG}fingerprint", ""),
        recipe=tags.get(f"{TAG}recipe", ""),
        lineage=_json(tags.get(f"{TAG}lineage"), {}),
        parameters=int(tags.get(f"{TAG}parameters", 0)),
        created=int(found.creation_timestamp or 0),
        run_id=found.run_id or "",
        source=found.source or "",
        description=found.description or "",
        tags=tags,
    )


def _json(text: str | None, default: Any) -> Any:
    try:
        return json.loads(text) if text else default
    except ValueError:  # a tag that a person has written
        return default


def _quoted(name: str) -> str:
    return name.replace("'", "\\'")
