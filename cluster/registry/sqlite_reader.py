"""The registry of an MLflow that is a SQLite file, read without MLflow; why, and at what price: reader.py.

    registered_models ─┬─ registered_model_aliases    alias → version
                       ├─ registered_model_tags       is it a prompt?
                       └─ model_versions ── model_version_tags
    logged_models                                     models:/m-… → artifact_location

Tables as in mlflow/store/model_registry/dbmodels/models.py and mlflow/store/tracking/dbmodels/models.py, queries as
in mlflow/store/model_registry/sqlalchemy_store.py (3.17).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cluster.registry.reader import IS_PROMPT, Record, Unsure

REVISIONS = {"dc11669786a5"}  # alembic's, of the schemas whose tables are as this file says: MLflow 3.17
WORKSPACE = "default"  # the only one of an MLflow without workspaces
DELETED = "Deleted_Internal"  # the stage of a version that was deleted
BUSY_SECONDS = 20.0  # MLflow's own patience with another process that writes
_COLUMNS = "name, version, creation_time, run_id, source, description"
_NO_PROMPTS = f"""NOT EXISTS (
    SELECT 1 FROM {{tags}} t
    WHERE t.workspace = '{WORKSPACE}' AND t.name = {{table}}.name AND t.key = '{IS_PROMPT}' AND t.value = 'true')"""


class SqliteReader:
    """Look-ups in one file; each opens it, read-only, and sees one state of it.

    Raises:
        Unsure: the file can't be read so, its schema is another than those known, or it has workspaces.
    """

    def __init__(self, database: Path):
        self.database = database

    def names(self) -> list[str]:
        condition = _NO_PROMPTS.format(tags="registered_model_tags", table="registered_models")
        with self._open() as ask:
            return [n for (n,) in ask(f"SELECT name FROM registered_models WHERE workspace = ? AND {condition}")]

    def aliases(self, name: str) -> dict[str, int] | None:
        with self._open() as ask:
            tagged = ask(
                "SELECT 1 FROM registered_model_tags WHERE workspace = ? AND name = ? AND key = ?", name, IS_PROMPT
            )
            if tagged or not ask("SELECT 1 FROM registered_models WHERE workspace = ? AND name = ?", name):
                return None
            query = "SELECT alias, version FROM registered_model_aliases WHERE workspace = ? AND name = ?"
            return {alias: int(version) for alias, version in ask(query, name)}

    def versions(self, name: str, tag: tuple[str, str] | None = None) -> list[Record]:
        condition, values = _NO_PROMPTS.format(tags="model_version_tags", table="model_versions"), [name]
        if tag is not None:
            condition += """ AND EXISTS (
                SELECT 1 FROM model_version_tags g
                WHERE g.workspace = model_versions.workspace AND g.name = model_versions.name
                  AND g.version = model_versions.version AND g.key = ? AND g.value = ?)"""
            values += tag
        with self._open() as ask:
            return self._records(ask, f"name = ? AND {condition}", *values)

    def version(self, name: str, number: int) -> Record | None:
        with self._open() as ask:
            found = self._records(ask, "name = ? AND version = ?", name, str(number))  # text: it may be a huge number
            return found[0] if found and IS_PROMPT not in found[0].tags else None

    def location(self, name: str, number: int) -> str:
        with self._open() as ask:
            query = (
                "SELECT storage_location, source FROM model_versions WHERE workspace = ? AND name = ? AND version = ?"
            )
            ((stored, source),) = ask(query, name, number)
            uri = stored or source or ""
            if uri.startswith("models:/m-"):
                query = "SELECT artifact_location FROM logged_models WHERE lifecycle_stage = 'active' AND model_id = ?"
                ((uri,),) = ask(query, uri.removeprefix("models:/"), workspace=False)
            return uri

    def _records(self, ask: Any, condition: str, *values: str) -> list[Record]:
        query = f"SELECT {_COLUMNS} FROM model_versions WHERE workspace = ? AND current_stage != '{DELETED}' AND "
        tags = "SELECT key, value FROM model_version_tags WHERE workspace = ? AND name = ? AND version = ?"
        return [
            Record(name, version, created or 0, run or "", source or "", text or "", dict(ask(tags, name, version)))
            for name, version, created, run, source, text in ask(query + condition, *values)
        ]

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """A function that asks the file and gives the rows; its first `?` is the workspace."""
        uri = f"file:{quote(str(self.database))}?mode=ro"
        try:
            connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        except sqlite3.Error as error:
            raise Unsure(str(error)) from error

        def ask(query: str, *values: Any, workspace: bool = True) -> list[tuple]:
            return connection.execute(query, (WORKSPACE, *values) if workspace else values).fetchall()

        try:
            connection.execute("BEGIN")
            revisions = {r for (r,) in connection.execute("SELECT version_num FROM alembic_version")}
            if len(revisions) != 1 or not revisions <= REVISIONS:
                raise Unsure(f"schema {revisions}")
            if ask("SELECT 1 FROM registered_models WHERE workspace != ? LIMIT 1"):
                raise Unsure("models in workspaces")
            yield ask
        except (sqlite3.Error, ValueError) as error:  # ValueError: a row that is not there, or twice
            raise Unsure(str(error)) from error
        finally:
            connection.close()
