"""Tensors by name as a safetensors file: no pickle, the mode that the umask gives, and broken files in words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.files import broken, regular

KIND = "a safetensors file"


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the file. The library makes it for its owner's eyes only, which no other file here is."""
    path.touch()
    mode = path.stat().st_mode & 0o777
    save_file(dict(tensors), path, metadata=metadata)
    path.chmod(mode)


def open_tensors(path: Path) -> Any:
    """The open file, a context manager. Raises UserError, with what it seems to be, for one that is broken."""
    try:
        return safe_open(regular(path, KIND), framework="pt")
    except SafetensorError as error:
        raise broken(path, KIND, error) from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All of a file; raises as `open_tensors`."""
    try:
        return load_file(regular(path, KIND))
    except SafetensorError as error:
        raise broken(path, KIND, error) from None
