"""The registry through MLflow's own client: right everywhere, and slow to import; see reader.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.registry.reader import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


class ClientReader:
    """MLflow 3.17's `search_model_versions` gives no aliases (mlflow#16734): they come from the registered model."""

    def __init__(self, client: MlflowClient):
        self.client = client

    def names(self) -> list[str]:
        names, token = [], None
        while True:
            page = self.client.search_registered_models(max_results=100, page_token=token)
            names += [m.name for m in page]
            token = page.token
            if not token:
                return names

    def aliases(self, name: str) -> dict[str, int] | None:
        from mlflow.exceptions import MlflowException

        try:
            aliases = self.client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return {a: int(v) for a, v in aliases.items()}

    def versions(self, name: str, tag: tuple[str, str] | None = None) -> list[Record]:
        condition = condition_of(name, tag)
        found, token = [], None
        while True:
            page = self.client.search_model_versions(condition, max_results=200, page_token=token)
            found += [_record(v) for v in page]
            token = page.token
            if not token:
                return found

    def version(self, name: str, number: int) -> Record | None:
        from mlflow.exceptions import MlflowException

        try:
            return _record(self.client.get_model_version(name, str(number)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def location(self, name: str, number: int) -> str:
        uri = self.client.get_model_version_download_uri(name, str(number))
        if uri.startswith("models:/m-"):
            uri = self.client.get_logged_model(uri.removeprefix("models:/")).artifact_location
        return uri


def _record(found: ModelVersion) -> Record:
    return Record(
        name=found.name,
        version=int(found.version),
        created=int(found.creation_timestamp or 0),
        run_id=found.run_id or "",
        source=found.source or "",
        description=found.description or "",
        tags=dict(found.tags),
    )


def condition_of(name: str, tag: tuple[str, str] | None = None) -> str:
    """MLflow's filter for the versions of a model, and those with a tag's value."""
    return f"name = {_quoted(name)}" + (f" and tags.`{tag[0]}` = {_quoted(tag[1])}" if tag else "")


def _quoted(text: str) -> str:
    """Its grammar knows no escapes, and so no text with quotes of both kinds."""
    return f'"{text}"' if "'" in text else f"'{text}'"
