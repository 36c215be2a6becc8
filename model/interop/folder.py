"""Weights as files: model.safetensors, or shards with an index (model.safetensors.index.json).

Tensors are read one at a time, when they are asked for, and keep the dtype that they have in the file. No pickle.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.errors import Missing, UserError
from model.files import AGAIN, given, read_json
from model.inside import inside
from model.tensors import open_tensors, save_tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class Weights:
    """A folder's tensors by name; a context manager.

    Raises:
        LookupError: there is no safetensors file, or the index names a file that is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = weight_files(folder)
        self._files: dict[str, Any] = {}
        self._stack = ExitStack()
        for name, path in files.items():
            file = self._stack.enter_context(open_tensors(path))
            twice = sorted(self._files.keys() & set(file.keys()))
            if twice:
                raise UserError(f"{folder}: {name} and another file both hold {twice[0]}.")
            self._files |= dict.fromkeys(file.keys(), file)
        self.size = sum(path.stat().st_size for path in files.values())  # bytes
        self.metadata: dict[str, str] = file.metadata() or {}  # the last file's; ours has one

    def __enter__(self) -> "Weights":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._files = {}

    def names(self) -> list[str]:
        return list(self._files)

    def meta(self, name: str) -> Tensor:
        """A tensor without values: its shape and dtype, from the file's header."""
        part = self._files[name].get_slice(name)
        dtype = part.get_dtype()
        if dtype not in DTYPES:
            raise UserError(f"{self.folder}: {name} is of dtype {dtype}; weights are {', '.join(DTYPES)}.")
        try:
            return torch.empty(part.get_shape(), dtype=DTYPES[dtype], device="meta")
        except RuntimeError as error:  # beside a side of no length any other passes as no bytes at all
            raise UserError(f"{self.folder}: {name} has a shape that no tensor has: {error}.") from None

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)


def count_tensors(folder: Path) -> int | None:
    """How many tensors a folder's weights have, by their headers; None: it has none, or not all."""
    try:
        with Weights(folder) as weights:
            return len(weights.names())
    except Missing:
        return None


def weight_files(folder: Path) -> dict[str, Path]:
    """The files that hold a folder's tensors, by name.

    Raises:
        LookupError: there is none, or the index names a file that is missing.
        UserError: the index names a file outside.
    """
    if given(folder / WEIGHTS):
        return {WEIGHTS: folder / WEIGHTS}
    if not given(folder / INDEX):
        pickled = " (its .bin files are pickles, which can run any code: convert them first)"
        has_pickle = any(folder.glob("*.bin"))
        raise Missing(f"{folder} has no {WEIGHTS} and no {INDEX}{pickled if has_pickle else ''}.")
    named = sorted(set(_places(folder / INDEX).values()))
    files = {name: inside(folder, name, folder / INDEX) for name in named}
    missing = [name for name, path in files.items() if not given(path)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise Missing(f"{folder}: {INDEX} names {', '.join(missing[:3])}{more}, which is not there.")
    return files


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def _places(path: Path) -> dict[str, str]:
    """The file of each tensor. Raises UserError for an index that is none."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(f, str) for f in places.values()):
        raise UserError(f"{path} has no weight_map, an object of tensors and their files: {AGAIN.lower()}.")
    return places


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]], max_bytes: int, about: dict[str, str]) -> int:
    """Write tensors as they come, in files of at most `max_bytes` (one tensor at least); returns how many files."""
    held: dict[str, Tensor] = {}
    places: dict[str, int] = {}
    total = shard = 0
    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if held and sum(_bytes(held)) + size > max_bytes:
            _save(held, folder, shard, about)
            held, shard = {}, shard + 1
        held[name], places[name] = tensor.contiguous(), shard
        total += size
    _save(held, folder, shard, about)
    if shard == 0:
        _part(folder, 0).rename(folder / WEIGHTS)
        return 1
    names = [f"model-{i + 1:05d}-of-{shard + 1:05d}.safetensors" for i in range(shard + 1)]
    for i, name in enumerate(names):
        _part(folder, i).rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {n: names[i] for n, i in places.items()}}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return shard + 1


def _bytes(tensors: dict[str, Tensor]) -> Iterator[int]:
    return (t.numel() * t.element_size() for t in tensors.values())


def _save(tensors: dict[str, Tensor], folder: Path, shard: int, about: dict[str, str]) -> None:
    save_tensors(tensors, _part(folder, shard), about)


def _part(folder: Path, shard: int) -> Path:
    return folder / f"part-{shard}"
