"""Hostile names in manifests, tokenizers, indexes and configs: nothing outside of the folder is touched.

    python -m tests.fuzz_names --cases 100000

The judge is the kernel (inotify): around the folders that may be used everything is watched, and so is `/`. Opening a
file there for reading counts as much as writing one. Hypothesis makes the names, and shrinks what is found.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from cluster.data.rows import TokenRows
from cluster.data.tokenizer.exchange import export_tokenizer
from cluster.store.artifact import Artifacts, Corrupt
from cluster.store.base import MANIFEST, NotFound
from cluster.store.local import LocalStore
from model.errors import UserError
from model.inside import inside
from model.interop.convert import import_model
from model.interop.folder import INDEX, Weights

FP, SECRET = "0123456789abcdef0123", b"secret"
SECRET_SHA = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
ROUND = 2000  # texts that share a seed
OPEN, MODIFY, ATTRIB, MOVED, CREATE, DELETE = 0x20, 0x2, 0x4, 0xC0, 0x100, 0x600
ISDIR = 0x40000000


class Watch:
    """What happens directly in these folders, as the kernel tells it: [(folder, name)], without folders' listings."""

    def __init__(self, folders: list[Path]):
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        mask = OPEN | MODIFY | ATTRIB | MOVED | CREATE | DELETE
        self.folders = {libc.inotify_add_watch(self.descriptor, os.fsencode(f), mask): f for f in folders}
        if self.descriptor < 0 or -1 in self.folders:
            raise OSError(ctypes.get_errno(), "inotify")

    def happened(self) -> list[tuple[str, str]]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.descriptor, 1 << 16):
                at = 0
                while at < len(data):
                    watch, mask, _, size = struct.unpack_from("iIII", data, at)
                    name = os.fsdecode(data[at + 16 : at + 16 + size].rstrip(b"\0"))
                    at += 16 + size
                    if mask & ~(OPEN | ISDIR) or not mask & ISDIR:
                        found.append((str(self.folders.get(watch, "the queue overflowed")), name))
        return found

    def close(self) -> None:
        os.close(self.descriptor)


class Remote(LocalStore):
    """A store whose files must be fetched, as those on S3."""

    def folder(self, key: str) -> Path | None:
        return None


class World:
    """A folder to work in, and all around it what must stay as it is."""

    def __init__(self, root: Path):
        self.root, self.inner = root, root / "outer" / "inner"
        self.outside = root / "outside"
        for folder in (self.outside, root / "outer" / "beside", self.inner):
            folder.mkdir(parents=True)
        for folder in (root, self.outside, root / "outer", root / "outer" / "beside"):
            (folder / "x").write_bytes(SECRET)
            (folder / "x.json").write_bytes(SECRET)
        self.watch = Watch([root, self.outside, root / "outer", root / "outer" / "beside", Path("/")])

    def fresh(self) -> Path:
        shutil.rmtree(self.inner / "f", ignore_errors=True)
        (self.inner / "f").mkdir()
        return self.inner / "f"

    def names(self) -> st.SearchStrategy[str]:
        part = st.sampled_from(
            ["..", ".", "", "x", "x.json", "beside", "outside", "outer", "inner", "f", "link", "link-2", "...", "~",
             "C:", "..\\", "\\", "．．", "%2e%2e", " ", ".. ", "\0", "\n", "con", "é", "\ud800", "tokenizer.json",
             MANIFEST]
        )  # fmt: skip
        path = st.lists(part, max_size=8).map("/".join)
        absolute = st.sampled_from(["/", "//", str(self.root) + "/", str(self.outside) + "/x", "/fuzzed-", "file:///"])
        up = st.integers(1, 12).flatmap(lambda n: path.map(lambda p: "../" * n + p))
        return st.one_of(path, up, st.tuples(absolute, path).map("".join), st.text(max_size=12))


def manifests(world: World, names: list[str], prefix: str, remote: bool) -> None:
    """An artifact and a checkpoint whose manifests name these files; their digests are those of what lies outside."""
    folder = world.fresh()
    store = (Remote if remote else LocalStore)(folder / "store")
    artifacts = Artifacts(store, folder / "cache")
    entry = {"size": len(SECRET), "sha256": SECRET_SHA}
    key = f"model/{FP}"
    for place, more in (
        (key, {"kind": "model", "stage": "s", "stage_version": 1, "fingerprint": FP}),
        (f"work/{FP}/checkpoints/step-{7:012d}", {"step": 7}),
    ):
        (store.root / place).mkdir(parents=True)
        (store.root / place / "x").write_bytes(SECRET)
        (store.root / place / "link").symlink_to(world.outside)
        about = {"format": 1, "files": dict.fromkeys(names, entry), "prefix": prefix or place + "/", "created": "c"}
        text = json.dumps(
            about | more | {"inputs": {"a": {"kind": names[0], "fingerprint": names[-1]}} if remote else {}}
        )
        (store.root / place / MANIFEST).write_text(text, encoding="utf-8")
    found = artifacts.find("model", FP)
    if found is not None:
        with contextlib.suppress(Corrupt, NotFound):
            artifacts.path(found.manifest)
            artifacts.lineage(found)
            for name in names:
                artifacts.read(found.manifest, name)
    list(artifacts.manifests("model"))
    checkpoints = artifacts.checkpoints(FP)
    checkpoints.latest()
    checkpoints.prune(1)
    checkpoints.clear()


def tokenizers(world: World, names: list[str], prefix: str, remote: bool) -> None:
    """The files that a tokenizer's list has, written out."""
    info: Any = {"library": "tokenizers", "ids": {}, "files": dict.fromkeys(names, "{}")}
    with contextlib.suppress(UserError):
        export_tokenizer(SimpleNamespace(info=info, model=b""), world.fresh(), 8)  # type: ignore[arg-type]


def indexes(world: World, names: list[str], prefix: str, remote: bool) -> None:
    """The index of weights, that of tokens, and links on the way."""
    folder = world.fresh()
    (folder / "link").symlink_to(world.outside)
    (folder / "link-2").symlink_to("../../beside/x")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict(enumerate(names))}), encoding="utf-8")
    with contextlib.suppress(UserError), Weights(folder):
        pass
    shard = {"file": names[0], "documents_file": names[-1], "bytes_file": prefix}
    tokens = {"dtype": "<u2", "pad_id": 0, "sources": {"a": {"train": {"shards": [shard], "tokens": 2}}}}
    (folder / "index.json").write_text(json.dumps(tokens), encoding="utf-8")
    with contextlib.suppress(UserError, OSError, ValueError):
        TokenRows(folder, 2)._source("train", "a")
    for name in names:
        with contextlib.suppress(UserError, OSError):
            path = inside(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"written")


def configs(world: World, names: list[str], prefix: str, remote: bool) -> None:
    """A config whose texts are names."""
    folder = world.fresh()
    keys = ("architectures", "model_type", "_name_or_path", "auto_map", "tokenizer_class", "layer_types", "torch_dtype")
    config = {key: [names[i % len(names)]] for i, key in enumerate(keys)} | {"model_type": prefix or "llama"}
    config |= {"architectures": ["LlamaForCausalLM"]} if remote else {}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with contextlib.suppress(UserError):
        import_model(folder, folder / "ours")


Target = Callable[[World, list[str], str, bool], None]
CASES: tuple[tuple[Target, bool], ...] = (
    (manifests, False), (manifests, True), (tokenizers, False), (indexes, False), (configs, False), (configs, True),
)  # fmt: skip


@contextlib.contextmanager
def world() -> Iterator[World]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    root, sync = Path(tempfile.mkdtemp(prefix="tokenmill-fuzz-", dir=memory)), os.fsync
    os.fsync = lambda descriptor: None  # nothing here has to outlive a loss of power
    made = World(root)
    try:
        yield made
    finally:
        os.fsync = sync
        made.watch.close()
        shutil.rmtree(root)


def fuzz(cases: int, first_seed: int = 0, tell: Callable[[int], None] = lambda done: None) -> int:
    """Try so many cases, a case being names in one kind of file; returns how many. Raises AssertionError, with it."""
    tried = 0
    with world() as around:
        before = {p: p.read_bytes() for p in around.root.rglob("*") if p.is_file()}
        names = around.names()
        while tried < cases:
            count = min(ROUND, -(-(cases - tried) // len(CASES)))

            def case(chosen: list[str], prefix: str) -> None:
                nonlocal tried
                for target, remote in CASES:
                    tried += 1
                    around.watch.happened()
                    target(around, chosen, prefix, remote)
                    touched = around.watch.happened()
                    assert not touched, f"{target.__name__} {chosen!r} {prefix!r} touched {touched}"

            run = given(st.lists(names, min_size=1, max_size=3), st.one_of(st.just(""), names))(case)
            checks = list(HealthCheck)
            quick = settings(max_examples=count, deadline=None, database=None, suppress_health_check=checks,
                             phases=[Phase.generate, Phase.shrink])  # fmt: skip
            seed(first_seed)(quick(run))()
            first_seed += 1
            tell(tried)
        after = {p: p.read_bytes() for p in around.root.rglob("*") if p.is_file() and around.inner not in p.parents}
        assert after == before, "a file outside is another"
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given_ = parser.parse_args()
    import logging

    logging.disable(logging.WARNING)  # what was set aside is no news here
    begun = time.monotonic()
    tried = fuzz(given_.cases, given_.seed, lambda done: print(f"\r{done:,}", end="", flush=True))
    print(f"\r{tried:,} cases in {time.monotonic() - begun:.0f} s: nothing outside was touched.")


if __name__ == "__main__":
    main()
