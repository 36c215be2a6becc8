"""Hugging Face folders in and out: model/interop for the weights, data/tokenizer_exchange for the tokenizer.

import   DIR (theirs) ─▶ a model's folder of ours ─▶ the registry, if it is to have a name
export   a model's folder of ours ─▶ DIR, whole or not there at all
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cluster.errors import Missing, UserError
from cluster.registry.find import FILES
from model.inside import check_links

if TYPE_CHECKING:
    from cluster.tracking.place import Place
    from model.interop.convert import Converted

T = TypeVar("T")
BUILDING = ".tokenmill-"  # in the name of a folder that isn't whole yet


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

    check_links(source)
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
    from cluster.interop.wide import plain_weights
    from model.checkpoint import load_config
    from model.files import named
    from model.interop.convert import export_model

    def fill(folder: Path) -> Converted:
        with plain_weights(source) as plain:
            return fill_from(plain, folder)

    def fill_from(source: Path, folder: Path) -> Converted:
        tokenizer = Tokenizer(source)
        longest = load_config(source).max_seq_len
        with named(source / "tokenizer.json"):
            ids, generation = export_tokenizer(tokenizer, folder, longest)
        return export_model(source, folder, ids, generation, architecture, max_bytes)

    return _whole(target, fill)


def _whole(target: Path, fill: Callable[[Path], T]) -> T:
    """Fill a folder beside `target` and put it in its place only when it is complete."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already: name a folder that is empty or not there.")
    made = [folder for folder in target.absolute().parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_dead(target)
    building = target.with_name(f".{target.name}{BUILDING}{uuid.uuid4().hex[:8]}")
    building.mkdir()  # its mode is the umask's, which a temporary folder's is not
    lock = os.open(building, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it, however the process ends
        result = fill(building)
        if target.exists():
            target.rmdir()
        building.rename(target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        for folder in made:  # the innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    finally:
        os.close(lock)
    return result


def _remove_dead(target: Path) -> None:
    """Remove what a killed process was building there."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}{BUILDING}????????"):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


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
