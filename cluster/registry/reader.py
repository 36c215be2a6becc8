"""What is asked of MLflow's registry, whoever answers.

    sqlite_reader   a SQLite file, read with Python's sqlite3          1 ms
    rest_reader     a server, asked over REST with urllib              a round trip
    client_reader   anything else, and whatever those two don't know   1.8 s to import MLflow, 1.3 s to open a database

A look-up in the registry is a part of `tokenmill models`, `generate models:/…` and `--plan`, and MLflow's own client
costs such a command more than all the rest of it. The price of the quick readers: they know MLflow's tables (at one
revision of its schema) and its REST paths, which is what a client is there to hide. So they only read; they raise
`Unsure` at the first thing that they don't know, and the client is asked; a test compares them with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

IS_PROMPT = "mlflow.prompt.is_prompt"  # tag of what MLflow keeps in the registry beside models, and doesn't list


class Unsure(Exception):
    """A quick reader doesn't know what MLflow's client would answer."""


@dataclass(frozen=True)
class Record:
    """A version of a registered model, as MLflow keeps it."""

    name: str
    version: int
    created: int  # Unix time in milliseconds
    run_id: str
    source: str
    description: str
    tags: Mapping[str, str]


class Reader(Protocol):
    """One registry. Each method may raise `Unsure`, in a quick reader."""

    def names(self) -> list[str]:
        """All registered models, in any order."""
        ...

    def aliases(self, name: str) -> dict[str, int] | None:
        """Alias -> version; None: no such model."""
        ...

    def versions(self, name: str, tag: tuple[str, str] | None = None) -> list[Record]:
        """A model's versions, in any order; those with this tag's value."""
        ...

    def version(self, name: str, number: int) -> Record | None:
        """One version; None: it isn't there."""
        ...

    def location(self, name: str, number: int) -> str:
        """URI of the folder that holds a version's files; the version is there."""
        ...
