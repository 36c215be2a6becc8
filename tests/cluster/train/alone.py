"""A rank without Ray and without a store, and tokens small enough for it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cluster.data.tokenizer.training import TokenizerConfig
from cluster.data.tokenizer.training import train as train_tokenizer
from cluster.train.worker import Worker

TEXTS = ["The quick brown fox jumps over the lazy dog.", "What is 2 + 3? The answer is 5."]


class Alone(Worker):
    """Keeps its last checkpoint and its curve."""

    def __init__(self, folder: Path, rank: int = 0, world_size: int = 1):
        super().__init__(rank, world_size, 0, "", "", None)
        self.folder = folder

    def resume(self) -> None:
        return None

    def stopping(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def save(self, step: int, write: Any, keep: int = 2) -> None:
        write(self.folder)

    @property
    def losses(self) -> list[float]:
        return [e["values"]["loss"] for e in self.events]


def folder_of(path: Path) -> Any:
    return SimpleNamespace(path=lambda: path)


def make_tokens(folder: Path) -> Path:
    """Write a tokens artifact and its tokenizer into one folder."""
    folder.mkdir(exist_ok=True)
    tokenizer = train_tokenizer(TEXTS * 50, TokenizerConfig(vocab_size=320))
    tokenizer.save(folder)
    splits = {}
    for split, count in (("train", 200), ("validation", 6)):
        ids = [tokenizer.encode(TEXTS[i % 2] * (1 + i % 3), bos=True, eos=True) for i in range(count)]
        np.concatenate(ids).astype("<u2").tofile(folder / f"{split}.bin")
        np.save(folder / f"{split}.docs.npy", np.cumsum([0, *map(len, ids)]))
        np.save(folder / f"{split}.bytes.npy", np.array([len(TEXTS[i % 2]) * (1 + i % 3) for i in range(count)]))
        names = {"file": f"{split}.bin", "documents_file": f"{split}.docs.npy", "bytes_file": f"{split}.bytes.npy"}
        splits[split] = {"shards": [names], "tokens": sum(map(len, ids)), "documents": count}
    index = {"dtype": "<u2", "vocab_size": tokenizer.vocab_size, "sources": {"prose": splits}}
    ids = {f"{n}_id": getattr(tokenizer, f"{n}_id") for n in ("pad", "bos", "eos")}
    (folder / "index.json").write_text(json.dumps(index | ids), encoding="utf-8")
    return folder
