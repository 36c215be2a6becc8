"""From the name of a model to the folder with its files, on this machine.

models:/NAME@ALIAS, models:/NAME/VERSION, models:/NAME (its champion)
  ├─ the registry's files are here      their folder
  └─ they are on a server or on S3      a copy in the cache, made once
DIR                                     itself, or the model inside an MLflow model's folder
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from cluster.cache import cache_root
from cluster.errors import Missing
from cluster.masking import taken_out
from cluster.registry.versions import Registry, like
from cluster.store.digest import remembered_sha256
from cluster.tracking.place import Place, answering, import_quietly

FILES = ("model.safetensors", "config.json", "tokenizer.model", "tokenizer.json")
INSIDE = "artifacts/model"  # where an MLflow model of ours keeps them


def model_folder(model: str | Path, place: Place | None = None) -> Path:
    """The local folder that holds a model's files; from a remote registry they are downloaded once.

    Args:
        model: see the top of this file; a folder may also be an MLflow model's.
        place: which MLflow to ask; default: MLFLOW_TRACKING_URI, else mlflow.db in the working folder.

    Raises:
        ValueError: `model` has neither form.
        LookupError: nothing is there under that name; the message has the nearest.
        ConnectionError: MLflow, or the S3 of its files, doesn't answer.
    """
    text = str(model)
    if text.startswith("models:"):
        return _registered(text, place)
    folder = Path(text).expanduser()
    for candidate in (folder, folder / INSIDE):
        if all((candidate / f).is_file() for f in FILES):
            return candidate.absolute()
    if folder.is_dir():
        missing = ", ".join(f for f in FILES if not (folder / f).is_file())
        raise Missing(f"{folder} is no model's folder: it has no {missing}.")
    if "/" not in text and "\\" not in text:
        raise Missing(_perhaps_registered(text, place))
    raise Missing(f"There is no folder {folder}. A registered model is written models:/NAME@ALIAS.")


def model_digest(model: str, place: Place | None = None) -> str:
    """What is behind a name now, of all its files: another one once an alias has moved."""
    folder = model_folder(model, place)
    return hashlib.sha256("".join(remembered_sha256(folder / name for name in FILES)).encode()).hexdigest()


def _registered(uri: str, place: Place | None) -> Path:
    registry = Registry(place)
    version = registry.get(uri)
    here = registry.local_files(version)
    if here is not None:
        return _checked(here / INSIDE, version.uri)
    key = f"{registry.place.uri}|{version.uri}|{version.created}|{version.source}"
    cache = cache_root() / "models"
    target = cache / hashlib.sha256(key.encode()).hexdigest()[:20]
    if not target.is_dir():
        import_quietly()
        uri = f"{registry.location(version).rstrip('/')}/{INSIDE}"
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as fresh:
            got = Path(fresh, "model")
            got.mkdir()
            with answering(registry.place.uri):
                _download(uri, taken_out(registry.place.uri), got)
            _checked(got, version.uri)
            try:
                got.rename(target)
            except OSError:  # another process was quicker
                shutil.rmtree(got, ignore_errors=True)
    return _checked(target, version.uri)


def _download(uri: str, tracking_uri: str, folder: Path) -> None:
    """Our files of those at `uri`, by our names for them: what else is there, and is called anyhow, stays there."""
    from mlflow.artifacts import download_artifacts, list_artifacts

    listed = {entry.path.rpartition("/")[2]: entry.is_dir for entry in list_artifacts(uri, tracking_uri=tracking_uri)}
    for name in FILES:
        if listed.get(name) is False:
            download_artifacts(artifact_uri=f"{uri}/{name}", dst_path=str(folder), tracking_uri=tracking_uri)


def _checked(folder: Path, name: str) -> Path:
    missing = [f for f in FILES if not (folder / f).is_file()]
    if missing:
        raise Missing(f"{name} is no model of tokenmill's: its files have no {', '.join(missing)} in {INSIDE}/.")
    return folder


def _perhaps_registered(name: str, place: Place | None) -> str:
    try:
        known = Registry(place).names()
    except (LookupError, ConnectionError):
        known = []
    if name in known:
        return f"There is no folder {name!r}; the registered model is written models:/{name}@champion."
    return f"There is no folder {name!r}, and no registered model of that name. {like(name, known)}"
