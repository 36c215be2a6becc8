"""Hugging Face folders in and out: model/interop for the weights, data/tokenizer_exchange for the tokenizer.

import   DIR (theirs) ─▶ a model's folder of ours ─▶ the registry, if it is to have a name
export   a model's folder of ours ─▶ DIR, whole or not there at all
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cluster.errors import Missing, UserError
from cluster.registry.find import FILES

if TYPE_CHECKING:
    from cluster.tracking.place import Place
    from model.interop.convert import Converted

T = TypeVar("T")


def import_folder(source: Path, target: Path) -> tuple[Converted, str | None]:
    """A Hugging Face folder as a model's folder of ours; returns what it is, and its tokenizer's kind (None: none).

    Raises:
        LookupError: `source` isn't a Hugging Face model's folder.
        ValueError: it can't be expressed here, its files contradict each other, or `target` holds something.
    """
    return _whole(target, lambda folder: import_into(source, folder))


def import_into(source: Path, folder: Path) -> tuple[Converted, str | None]:
    """As `import_folder`, into a folder that is there; on an error it holds what was written until then."""
    from cluster.data.tokenizer.exchange import import_tokenizer
    from model.interop.convert import import_model

    if source.suffix == ".gguf":
        from cluster.interop.gguf import import_gguf

        return import_gguf(source, folder), "sentencepiece"
    done = import_model(source, folder)
    return done, import_tokenizer(source, folder, done.config.vocab_size)


def export_folder(source: Path, target: Path, architecture: str | None, max_bytes: int) -> Converted:
    """A model's folder of ours as a Hugging Face folder.

    Raises:
        ValueError: no architecture, or not this one, can hold the model, or `target` holds something.
    """
    from cluster.data.tokenizer.exchange import export_tokenizer
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.checkpoint import load_config
    from model.interop.convert import export_model

    def fill(folder: Path) -> Converted:
        tokenizer = Tokenizer(source)
        ids, generation = export_tokenizer(tokenizer, folder, load_config(source).max_seq_len)
        return export_model(source, folder, ids, generation, architecture, max_bytes)

    return _whole(target, fill)


def _whole(target: Path, fill: Callable[[Path], T]) -> T:
    """Fill a folder beside `target` and put it in its place only when it is complete."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already: name a folder that is empty or not there.")
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    building.mkdir()  # its mode is the umask's, which a temporary folder's is not
    try:
        result = fill(building)
        if target.exists():
            target.rmdir()
        building.rename(target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return result


def register_folder(folder: Path, name: str, done: Converted, source: Path, place: Place | None = None) -> str:
    """Register an imported model; returns models:/NAME/VERSION.

    Raises:
        LookupError: a file of the model is missing, e.g. its tokenizer.
        UserError: the registry takes no such name.
        ConnectionError: MLflow doesn't answer.
    """
    from cluster.registry.names import checked_name
    from cluster.registry.versions import TAG, Registry
    from cluster.release.package import register
    from cluster.tracking.place import answering, connect, experiment_id, locate

    missing = [f for f in FILES if not (folder / f).is_file()]
    if missing:
        raise Missing(f"{source} has no tokenizer, and a registered model needs one: import it with --out instead.")
    checked_name(name)
    place = place or locate()
    with answering(place.uri):
        client = connect(place.uri)
        experiment = experiment_id(client, name, place.artifact_root)
        run = client.create_run(experiment, run_name="import").info.run_id
        tags = {f"{TAG}parameters": str(done.parameters), f"{TAG}imported": f"{done.architecture} from {source}"}
        try:
            version = register(Registry(place), folder, name, run, tags)
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong before is what counts
                client.set_terminated(run, "FAILED")
            raise
        client.set_terminated(run)
    return version.uri
