"""The MLflow model that a release registers: pyfunc.py as its code, safetensors as its weights, no pickle."""

from __future__ import annotations

import json
import math
import shutil
import struct
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.loading import FILES

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

PACKAGES = ("torch", "numpy", "safetensors", "sentencepiece", "mlflow")


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
    from cluster.mlflow_place import import_quietly

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
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={"model": str(chosen)},
            pip_requirements=[f"{name}=={metadata.version(name).split('+')[0]}" for name in PACKAGES],
            signature=signature(),
            input_example={"prompt": "Once upon a time"},
        )


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
        params=ParamSchema(
            [
                ParamSpec("max_new_tokens", "long", 64),
                ParamSpec("temperature", "double", 0.8),
                ParamSpec("top_p", "double", 0.95),
                ParamSpec("seed", "long", 0),
            ]
        ),
    )
    made._is_signature_from_type_hint = True
    return made


def count_parameters(weights: Path) -> int:
    """The number of values in a safetensors file, by its header alone (8 bytes of length, then JSON)."""
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _about() -> dict[str, str]:
    from cluster.provenance import code_version

    return {"tokenmill": metadata.version("tokenmill"), "code_version": code_version()}
