"""The MLflow model that a release registers: pyfunc.py as its code, safetensors as its weights, no pickle."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from cluster.registry.find import FILES
from cluster.registry.names import logged_name
from model.generate.decoding import OPTIONS, TEXT, TYPES

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSpec

    from cluster.registry.versions import Registry, Version

PACKAGES = ("torch", "numpy", "safetensors", "sentencepiece", "jinja2", "mlflow")


def register(
    registry: Registry,
    folder: Path,
    name: str,
    run_id: str,
    tags: dict[str, str],
    metrics: dict[str, float] | None = None,
) -> Version:
    """A run's logged model of the files in `folder`, then a version of the registered model that points to it.

    Where that fails, also by a signal, the copy of the files is taken back.
    """
    client = registry.client
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(
        experiment, name=logged_name(name), source_run_id=run_id, model_type="tokenmill", tags=tags
    )
    try:
        return _register(registry, logged, folder, name, run_id, tags, metrics or {})
    except BaseException:
        with contextlib.suppress(Exception):  # what went wrong before is what counts
            _take_back(registry, logged, name)
        raise


def _register(
    registry: Registry,
    logged: LoggedModel,
    folder: Path,
    name: str,
    run_id: str,
    tags: dict[str, str],
    metrics: dict[str, float],
) -> Version:
    from mlflow.entities import LoggedModelOutput, Metric

    client = registry.client
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "model"
        save_package(folder, package, model_id=logged.model_id, run_id=run_id, location=logged.artifact_location)
        client.log_model_artifacts(logged.model_id, str(package))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
    now = int(datetime.now(UTC).timestamp() * 1000)
    points = [Metric(k, v, now, 0, model_id=logged.model_id, run_id=run_id) for k, v in metrics.items()]
    for start in range(0, len(points), 500):
        client.log_batch(run_id, metrics=points[start : start + 500])
    _create_registered(client, name)
    # A database that is used directly looks a models:/ source up in the process's global MLflow, which is another.
    source = f"models:/{logged.model_id}" if registry.place.is_server else logged.artifact_location
    created = client.create_model_version(name, source, run_id, tags=tags, model_id=logged.model_id)
    return registry.get(f"models:/{name}/{created.version}")


def _take_back(registry: Registry, logged: LoggedModel, name: str) -> None:
    """Remove a logged model and its files, unless a version points to it: its answer may be what was lost."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    where = logged.artifact_location
    with contextlib.suppress(LookupError):  # no such model, so no version
        if any(v.source in (where, f"models:/{logged.model_id}") for v in registry.versions(name)):
            return
    folder = Path(unquote(where.removeprefix("file://")) if where.startswith("file://") else where)
    if folder.parent.name == logged.model_id and folder.is_absolute():  # EXPERIMENT/models/ID/artifacts, here
        shutil.rmtree(folder.parent, ignore_errors=True)
    else:
        get_artifact_repository(where, registry.place.uri).delete_artifacts()
    registry.client.delete_logged_model(logged.model_id)


def _create_registered(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def save_package(
    folder: Path,
    package: Path,
    model_id: str | None = None,
    run_id: str | None = None,
    location: str | None = None,
) -> None:
    """Write an MLflow model: this package's pyfunc.py as its code, the files of `folder` as its artifacts.

    The package itself is not among the pip requirements: a name that no registry holds for us is nobody's to
    install by name. Its version is in the model's metadata, and pyfunc.py says what is missing.
    """
    from cluster.tracking.place import import_quietly

    import_quietly()
    import mlflow.pyfunc
    from mlflow.models import Model

    with tempfile.TemporaryDirectory() as scratch:
        chosen = Path(scratch) / "model"  # of the artifact's files only those that the model needs
        chosen.mkdir()
        for name in FILES:
            _link_or_copy(folder / name, chosen / name)
        about = Model(artifact_path=location or "model", run_id=run_id, model_id=model_id, metadata=_about())
        mlflow.pyfunc.save_model(
            str(package),
            mlflow_model=about,
            python_model=str(Path(__file__).parent.with_name("serve") / "pyfunc.py"),
            artifacts={"model": str(chosen)},
            pip_requirements=[f"{name}=={metadata.version(name).split('+')[0]}" for name in packages(folder)],
            signature=signature(),
            input_example={"prompt": "Once upon a time"},
        )


def packages(folder: Path) -> tuple[str, ...]:
    """What a model's folder needs to run, beside this package."""
    info = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return (*PACKAGES, "tokenizers") if info.get("library") == "tokenizers" else PACKAGES


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def signature() -> ModelSignature:
    """Strings or chat messages in, strings out, with the options of generation as parameters.

    MLflow would force the input into its schema's table first, and lose the contents of a list of messages. A
    signature that comes from type hints is exempt, since `predict` checks the input itself; so does ours.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    message = Object([Property("role", "string"), Property("content", "string")])
    made = ModelSignature(
        inputs=Schema(
            [
                ColSpec("string", "prompt", required=False),
                ColSpec(Array(message), "messages", required=False),
            ]
        ),
        outputs=Schema([ColSpec("string")]),
        params=ParamSchema([_parameter(ParamSpec, option.name) for option in OPTIONS]),
    )
    made._is_signature_from_type_hint = True
    return made


def _parameter(spec: type[ParamSpec], name: str) -> ParamSpec:
    """An option of generation with its default; of texts there may be several."""
    default, kind = getattr(TEXT, name), TYPES[name]
    if kind is tuple:
        return spec(name, "string", list(default), shape=(-1,))
    return spec(name, {int: "long", float: "double", str: "string"}[kind], default)


def count_parameters(weights: Path) -> int:
    """The number of weights in a safetensors file, by its header alone; a quantized one's are its codes.

    Raises UserError for what is none.
    """
    from model.quantization import weights_in
    from model.tensors import open_tensors

    with open_tensors(weights) as file:
        names = file.keys()
        return sum(weights_in(name, math.prod(file.get_slice(name).get_shape())) for name in names)


def _about() -> dict[str, str]:
    from cluster.provenance import code_version

    return {"tokenmill": metadata.version("tokenmill"), "code_version": code_version()}
