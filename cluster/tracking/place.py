"""Where MLflow is for a store, and a quiet connection to it.

    store             nothing configured                                  MLFLOW_TRACKING_URI or [tracking] uri
    ./store           sqlite:///<abs>/mlflow.db, <abs>/mlartifacts        wins; a server keeps its own artifacts
    s3://bucket/p     sqlite:///<cwd>/mlflow.db, s3://bucket/p/mlflow

`[tracking] uri` is the recipe's and so wins over the variable. A SQLite file is made once, under a lock: MLflow's
migrations race when two processes are the first.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from cluster.cache import cache_root
from cluster.errors import UserError
from cluster.masking import masked, put_away, taken_out
from cluster.store_url import local_folder
from model.inside import Outside, plain_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Read by MLflow at import or at each request. `setdefault`: what the user has set wins.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default waits for 4 minutes within one call; outbox and line retry
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
SQLITE, SQLITE_DRIVER = "sqlite:///", "sqlite+pysqlite:///"
# By this tag of an experiment MLflow's page opens with training runs, not with the traces of applications.
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
UNDECIDED = (None, "", "no_inferred_type", "genai_development_inferred")  # what nobody has chosen
_guard = threading.Lock()
_ready: set[str] = set()


@dataclass(frozen=True)
class Place:
    """An MLflow, and where new experiments of it keep their files (None: as the server decides)."""

    uri: str  # as it may be shown; `connect` dials it with its user and password
    artifact_root: str | None
    state: Path  # what has not been delivered yet is kept here

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", put_away(self.uri))

    @property
    def is_server(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    @property
    def database(self) -> Path | None:
        """The SQLite file, if it is one."""
        return database_of(self.uri)

    @property
    def command(self) -> str:
        """What a person types to see the runs of a database that no server shows."""
        program = "mlflow" if shutil.which("mlflow") else str(Path(sys.executable).with_name("mlflow"))
        return f"{shlex.quote(program)} ui --backend-store-uri {shlex.quote(self.uri)}"


def locate(store_url: str | Path = "store", uri: str | None = None) -> Place:
    """The MLflow that belongs to a store; see the table above.

    Raises:
        ValueError: a `uri` that MLflow would take for its old file store, which it no longer serves.
    """
    store, folder = str(store_url), local_folder(store_url)
    remote = folder is None
    beside = Path.cwd() if folder is None else folder.parent
    given = taken_out(uri or os.environ.get("MLFLOW_TRACKING_URI") or "")
    artifacts: str | None = f"{store.rstrip('/')}/mlflow" if remote else location_of(beside / "mlartifacts")
    if not given:
        given = database_uri(beside / "mlflow.db")
    elif database := database_of(given):
        given = database_uri(database)
        artifacts = artifacts if remote else location_of(database.parent / "mlartifacts")
    elif given.startswith(("http://", "https://", "databricks")):
        given, artifacts = given.rstrip("/"), None
    elif "://" not in given or given.startswith("file:"):
        raise UserError(
            f"Tracking URI {masked(given)!r}: MLflow no longer keeps runs in plain files. Give a server (http://…), "
            f"a database (sqlite:////abs/mlflow.db, postgresql://…), or nothing."
        )
    if folder is None:
        import hashlib

        state = cache_root() / "tracking" / hashlib.sha256(store.encode()).hexdigest()[:16]
    else:
        state = folder / "work" / "tracking"
    return Place(given, artifacts, state)


def database_uri(path: Path) -> str:
    """The URI by which MLflow opens a SQLite file, whatever characters its path has.

    SQLAlchemy ends the path at `?` and decodes `%xx`. Of a URI that begins with sqlite:/// MLflow would also make the
    undecoded folder, empty, beside the right one.
    """
    if _is_plain(path):
        return f"{SQLITE}{path}"
    return f"{SQLITE_DRIVER}{str(path).replace('%', '%25').replace('?', '%3F')}"


def database_of(uri: str) -> Path | None:
    """The SQLite file of a URI as SQLAlchemy reads it, None for any other URI."""
    prefix = next((p for p in (SQLITE, SQLITE_DRIVER) if uri.startswith(p)), None)
    return Path(unquote(uri[len(prefix) :].partition("?")[0])).absolute() if prefix else None


def location_of(folder: Path) -> str:
    """A folder as MLflow keeps it for artifacts: in what has no scheme it decodes `%xx` too."""
    return str(folder) if _is_plain(folder) else folder.as_uri()


def _is_plain(path: Path) -> bool:
    return not set("%?") & set(str(path))


def connect(uri: str) -> MlflowClient:
    """A client, with MLflow's chatter in Python's logging and not on the terminal. The first takes seconds."""
    import_quietly()
    from mlflow import MlflowClient

    with _guard:
        database = database_of(uri)
        if uri not in _ready and database is not None:
            _create_database(database, uri)
        _ready.add(uri)
    dialled = taken_out(uri)
    return MlflowClient(tracking_uri=dialled, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or dialled)


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Within this an MLflow that doesn't answer is a ConnectionError that says so; likewise the S3 of its files.

    Raises:
        ConnectionError: instead of MLflow's own exception for a failed or refused connection, or a 5xx answer.
    """
    try:
        yield
    except Exception as error:
        if _is_s3_away(error):
            raise ConnectionError(
                f"The S3 that has the files of MLflow at {uri} does not answer ({masked(str(error))[:300]}). "
                "Check AWS_ENDPOINT_URL, and that the server runs and can be reached."
            ) from error
        # MLflow has no exception type for it; these are the messages of mlflow/utils/rest_utils.py.
        text = str(error)
        away = text.startswith("API request to") and not any(f"error code {c}" in text for c in (400, 401, 403, 404))
        if not away and getattr(error, "error_code", "") not in ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"):
            raise
        raise ConnectionError(
            f"MLflow at {uri} does not answer ({masked(text)[:300]}). Start it, or name another by MLFLOW_TRACKING_URI."
        ) from error


def _is_s3_away(error: Exception) -> bool:
    """Whether it is of botocore, and no answer of a server; asked by name, so that botocore isn't imported."""
    kinds = {(kind.__module__, kind.__name__) for kind in type(error).__mro__}
    return not kinds.isdisjoint(
        {("botocore.exceptions", "ConnectionError"), ("botocore.exceptions", "HTTPClientError")}
    )


def import_quietly() -> Any:
    """The `mlflow` module, its loggers handed to Python's logging: it puts handlers of its own on stderr."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic", "sqlalchemy.engine", "huey"):
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = bool(logging.getLogger().handlers)
    return mlflow


def _create_database(path: Path, uri: str) -> None:
    from mlflow import MlflowClient
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(path.name + ".lock")):
        # MLflow writes the place of its experiment "Default" into the text of a query: no quotes may be in it.
        SqlAlchemyStore(uri, (path.parent / "mlartifacts").as_uri())
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file; yields whether it is held (always, with `wait`). It falls free when its owner dies."""
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def checked_experiment(name: str) -> str:
    """The name of an experiment, which is a folder's for its files too. Raises UserError for one that can be none."""
    if not name.strip() or any(not c.isprintable() for c in name):
        raise UserError(f"{name!r} is no name of an experiment: it is one line of visible text.")
    try:
        plain_name(_folder_of(name))
    except Outside as error:
        raise UserError(
            f"{name!r} is no name of an experiment, whose files lie in a folder of that name: {error}"
        ) from None
    return name


def _folder_of(experiment: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in experiment)


def experiment_id(client: MlflowClient, name: str, artifact_root: str | None) -> str:
    """The experiment's id; made, or brought back from the trash, where needed."""
    from mlflow.exceptions import MlflowException

    checked_experiment(name)
    for _ in range(2):
        found = client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(found.experiment_id)
            if found.tags.get(KIND) in UNDECIDED:
                client.set_experiment_tag(found.experiment_id, KIND, TRAINING)
            return found.experiment_id
        try:
            location = f"{artifact_root}/{_folder_of(name)}" if artifact_root else None
            return client.create_experiment(name, location, {KIND: TRAINING})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was quicker
                raise
    raise RuntimeError(f"MLflow says both that experiment {name!r} exists and that it doesn't.")
