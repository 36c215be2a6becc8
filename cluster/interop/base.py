"""Stage `base`: a trained model that a line begins with, in the place of a tokenizer and a pretraining of its own.

    models:/NAME@ALIAS, models:/NAME/VERSION     the version that the alias names when the recipe is read
    DIR                                          a model's folder of ours, or a Hugging Face folder as `import` reads it
    FILE.gguf                                    a GGUF file, likewise

The artifact is a model's folder like that of any training: weights, config, and the model's own tokenizer with its chat
template. Its fingerprint is that of the model's files, wherever they lie and whatever their name is.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from cluster.data.tokenizer.foreign import KEPT
from cluster.errors import Missing, UserError, named_by_a_person
from cluster.identity import canonical_json, how
from cluster.quantities import count
from cluster.registry.find import FILES, INSIDE, model_folder
from cluster.registry.versions import Registry
from cluster.release.package import count_parameters
from cluster.stage import Stage, Summary, Workspace
from cluster.store.digest import remembered_sha256
from model.config import ModelConfig
from model.files import read_json
from model.inside import check_links, inside

if TYPE_CHECKING:
    from cluster.tracking.place import Place

CONFIG, GGUF = "config.json", ".gguf"


class BaseConfig(BaseModel):
    """A base model, found; `base = "…"` of a recipe is all that a person writes of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str  # of its files
    name: str = how("")  # models:/NAME/VERSION, or an absolute path
    source: str = how("")  # where its files are on this machine
    network: ModelConfig = how(ModelConfig())


def find_base(base: str, place: Place | None = None) -> BaseConfig:
    """The model that a recipe's `base` means now; its config is read, its weights only for their digest.

    Args:
        place: the MLflow that knows registered models; default: the working folder's.

    Raises:
        UserError: there is none, it can't be expressed here, or it has no tokenizer.
        ConnectionError: MLflow doesn't answer.
    """
    if base.startswith("models:"):
        uri = Registry(place).get(base).uri
        folder = model_folder(uri, place)
        return BaseConfig(digest=_digest(folder, FILES), name=uri, source=str(folder), network=_network(folder))
    if "://" in base:
        raise UserError(f"{base!r} is not read: give a folder or a .gguf file of this machine, or models:/NAME@ALIAS.")
    path = Path(base).expanduser().absolute()
    with named_by_a_person(path):
        if is_gguf(path):
            from cluster.interop.gguf import read_gguf

            network, names = read_gguf(path)[0], (path.name,)
            return BaseConfig(digest=_digest(path.parent, names), name=str(path), source=str(path), network=network)
        if is_theirs(path):
            from model.interop.convert import believable

            check_links(path)
            names, network = their_files(path), believable(path)[1]
        else:
            above, path = path, model_folder(base, place)  # itself, or the model inside an MLflow model's
            for name in FILES:
                inside(above, "/".join((*path.relative_to(above).parts, name)))
            network, names = _network(path), FILES
        return BaseConfig(digest=_digest(path, names), name=str(path), source=str(path), network=network)


def is_gguf(path: Path) -> bool:
    return path.suffix == GGUF


def is_theirs(path: Path) -> bool:
    """Whether it is a Hugging Face folder, as far as its names tell: ours has the same names, and our own config."""
    if not path.is_dir() or (path / INSIDE).is_dir():
        return False
    config = read_json(path / CONFIG, missing={})
    return bool(config) and "ff_pattern" not in config


def their_files(folder: Path) -> tuple[str, ...]:
    """The files of a Hugging Face folder that an import reads."""
    from model.interop.folder import INDEX, weight_files

    others = (CONFIG, INDEX, "tokenizer.model", *KEPT)
    return (*weight_files(folder), *(name for name in dict.fromkeys(others) if (folder / name).is_file()))


def _digest(folder: Path, names: tuple[str, ...]) -> str:
    digests = remembered_sha256(folder / name for name in names)
    return hashlib.sha256(canonical_json(sorted(zip(names, digests, strict=True))).encode()).hexdigest()


def _network(folder: Path) -> ModelConfig:
    """The config of a folder of ours, after a look at whether its weights fit it."""
    from model.checkpoint import without_memory

    return without_memory(folder).config


@contextmanager
def tokenizer_of(base: BaseConfig) -> Iterator[Path]:
    """A folder that has the base's tokenizer, as ours, within this context. Raises UserError if it has none."""
    source = Path(base.source)
    if not is_gguf(source) and not is_theirs(source):
        yield source
        return
    with tempfile.TemporaryDirectory() as scratch:
        if is_gguf(source):
            from cluster.interop.gguf import read_gguf

            read_gguf(source)[1].save(scratch)
        else:
            from cluster.data.tokenizer.exchange import import_tokenizer

            if import_tokenizer(source, Path(scratch), base.network.vocab_size) is None:
                raise Missing(f"{source} has no tokenizer, and a base model needs its own.")
        yield Path(scratch)


@dataclass(frozen=True)
class BaseSummary(Summary):
    """Which model it is, and what it brings. template: of its conversations, "own", "ours" or "" for none."""

    model: str = ""
    parameters: int = 0
    context: int = 0
    template: str = ""

    def words(self) -> str:
        way = {"own": "its own chat template", "ours": "our chat template"}.get(self.template, "no chat template")
        return f"{self.model}: {count(self.parameters)} parameters, context {self.context:,}, {way}"


def run_base(ws: Workspace) -> BaseSummary:
    """The base's files become the artifact, converted where they are another's."""
    from cluster.data.tokenizer.chat import chats
    from cluster.data.tokenizer.tokenizer import Tokenizer

    config: BaseConfig = ws.config
    source = Path(config.source)
    with named_by_a_person(source):
        if is_gguf(source) or is_theirs(source):
            from cluster.interop.huggingface import import_into

            read = (source.parent, (source.name,)) if is_gguf(source) else (source, their_files(source))
            import_into(source, ws.out)
        else:
            read = (source, FILES)
            for name in FILES:
                shutil.copyfile(source / name, ws.out / name)
        if _digest(*read) != config.digest:
            raise UserError(f"{config.name} has changed since the recipe was read: run it again.")
    tokenizer = Tokenizer(ws.out)
    template = "own" if tokenizer.template is not None else "ours" if chats(tokenizer) else ""
    parameters = count_parameters(ws.out / "model.safetensors")
    return BaseSummary(config.name, parameters, config.network.max_seq_len, template)


def gist(config: BaseConfig) -> str:
    return config.name


STAGE = Stage("base", "model", 1, BaseConfig, run_base, BaseSummary, uses_ray=False, gist=gist)
