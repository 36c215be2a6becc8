"""What the manifests of artifacts and of checkpoints share: the files they name, and how one is read that others wrote.

A manifest in a shared store is anybody's. So its format comes first, then its names, each of which leads down from the
place where it lies: what names anything else is damaged, as what is torn is.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from cluster.store.base import MANIFEST, NewerInStore
from model.errors import Newer
from model.files import check_format
from model.inside import Outside, plain_name

M = TypeVar("M", bound=BaseModel)
WRONG = (ValidationError, Outside)  # what a manifest is refused with that is damaged
Name = Annotated[str, AfterValidator(plain_name)]


class FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True)

    size: int = Field(ge=0)
    sha256: str


Files = dict[Name, FileEntry]


def read_manifest(kind: type[M], data: bytes, newest: int, key: str) -> M:
    """The manifest in `data`, of the folder `key`.

    Raises:
        NewerInStore: a later version has written it, whatever else is in it.
        ValidationError: it is damaged.
    """
    try:
        found = from_json(data)
    except ValueError:
        found = None  # the next line says what is wrong
    given = found.get("format") if isinstance(found, dict) else None
    if type(given) is int and given > newest:
        try:
            check_format(given, newest, key)
        except Newer as error:
            raise NewerInStore(str(error)) from None
    return kind.model_validate_json(data)


def check_place(key: str, prefix: str) -> None:
    """Raises Outside unless a manifest at `key` says that its files lie there: at KEY/, or on S3 at KEY/NONCE/."""
    place = plain_name(prefix.removesuffix("/"), f"{key}/{MANIFEST}")
    if place != key and not place.startswith(f"{key}/"):
        raise Outside(f"{key}/{MANIFEST} says that its files lie at {place!r}, which is another's place")


def in_short(error: Exception) -> str:
    """The first thing that is wrong, on one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
