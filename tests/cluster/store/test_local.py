"""A store in a folder: what has a name is on the disk, whole, and what failed leaves nothing behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from tiny_artifact import FP, build, contents

from cluster.store import NotFound
from cluster.store import local as module
from cluster.store.base import MANIFEST, files_in, join
from cluster.store.local import LocalStore

KEY = f"model/{FP}"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was synced and what was named, in order, by last names; a temporary one as "…"."""
    events: list[tuple[str, str]] = []

    def short(path: Any) -> str:
        name = Path(path).name
        return "…" if name.startswith(module.TEMPORARY) else name

    def wrap(owner: Any, name: str, event: str, which: int) -> None:
        real = getattr(owner, name)

        def wrapped(*given: Any, **more: Any) -> Any:
            shown = f"/proc/self/fd/{given[0]}" if name == "fsync" else given[which]
            events.append((event, short(Path(shown).readlink() if name == "fsync" else shown)))
            return real(*given, **more)

        monkeypatch.setattr(owner, name, wrapped)

    wrap(os, "fsync", "synced", 0)
    wrap(os, "link", "named", 1)
    wrap(Path, "replace", "named", 1)
    wrap(Path, "rename", "named", 1)
    return events


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's list of open files")
def test_content_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_call_ends(
    store: LocalStore, tmp_path: Path, done: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [("synced", "…"), ("named", "key"), ("synced", "folder")]
    store.write("folder/key", b"x")
    assert done == expected
    done.clear()
    assert store.write("folder2/key", b"x", if_absent=True)
    assert done == [*expected[:2], ("synced", "folder2")]
    done.clear()
    (tmp_path / "given").write_bytes(b"x")
    store.upload(tmp_path / "given", "folder/key")
    assert done == expected
    done.clear()
    assert store.commit(build(tmp_path, {"a": "1", "deep/b": "2"}), KEY, lambda prefix: b"{}")
    names = [name for event, name in done[: [event for event, _ in done].index("named")]]
    assert names[:3] == ["a", "b", MANIFEST] and done[-2:] == [("named", FP), ("synced", "model")]
    done.clear()
    folder, rename = build(tmp_path, {"a": "1", "deep/b": "2"}), Path.rename

    def across(self: Path, target: Path) -> Path:
        if self == folder:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", across)
    assert store.commit(folder, "model/other", lambda prefix: b"{}")
    assert not folder.exists()
    at = done.index(("named", "other"))
    assert done[at - 3 : at] == [("synced", "a"), ("synced", "b"), ("synced", MANIFEST)], "the copies, once more"


def test_a_file_system_that_syncs_no_folder_is_used_all_the_same(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def refuse(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    assert store.write("a/b", b"x") and store.read("a/b") == b"x"


def left(store: LocalStore) -> list[str]:
    """Every name in the store's folders, the hidden ones too."""
    return sorted(path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file())


def test_nothing_temporary_is_left_where_a_write_was_refused_or_failed(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.write("a/b", b"first", if_absent=True) and not store.write("a/b", b"second", if_absent=True)
    store.try_writing()
    with pytest.raises(FileNotFoundError):
        store.upload(tmp_path / "nowhere", "a/c")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    for key in ("a/b", "a/d"):
        with pytest.raises(OSError, match="broken"):
            store.write(key, b"x")
    assert left(store) == ["a/b"] and store.read("a/b") == b"first"


def test_a_copy_from_another_file_system_that_comes_second_is_cleared_away(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = build(tmp_path, {"a": "mine"}), Path.rename

    def across(self: Path, target: Path) -> Path:
        if self == folder:
            store.write(f"{KEY}/{MANIFEST}", b"the first's")
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", across)
    assert not store.commit(folder, KEY, lambda prefix: b"mine")
    assert left(store) == [f"{KEY}/{MANIFEST}"] and store.read(f"{KEY}/{MANIFEST}") == b"the first's"
    assert contents(folder) == {"a": "mine"} and not (folder / MANIFEST).exists()


def test_a_commit_survives_that_an_empty_parent_is_cleared_away(store: LocalStore, tmp_path: Path) -> None:
    def cleared(prefix: str) -> bytes:
        (store.root / "model").rmdir()
        return b"{}"

    assert store.commit(build(tmp_path, {"a": "1"}), KEY, cleared)
    assert left(store) == [f"{KEY}/a", f"{KEY}/{MANIFEST}"]


def test_a_file_where_the_folder_would_be_is_somebody_else_s(store: LocalStore, tmp_path: Path) -> None:
    def taken(prefix: str) -> bytes:
        store.write(KEY, b"theirs")
        return b"{}"

    assert not store.commit(build(tmp_path, {"a": "1"}), KEY, taken)
    assert store.read(KEY) == b"theirs"


def test_no_reader_sees_a_folder_that_is_half_deleted(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        store.write(f"m/x/{name}", b"1")
    seen: list[Any] = []
    real = module.shutil.rmtree
    monkeypatch.setattr(module.shutil, "rmtree", lambda *a, **k: (seen.append(list(store.list())), real(*a, **k)))
    store.delete_prefix("m/x")
    assert seen == [[]] and left(store) == []


def test_what_is_withdrawn_by_another_first_is_not_ours(store: LocalStore) -> None:
    store.write(f"{KEY}/{MANIFEST}", b"{}")
    assert store.withdraw(KEY, "aside/one", b"{}")
    assert not store.withdraw(KEY, "aside/two", b"{}")
    assert left(store) == [f"aside/one/{MANIFEST}"]


def test_a_listing_passes_over_what_is_half_written_or_just_deleted(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{module.TEMPORARY}1", "a", "gone", f"{module.TEMPORARY}2", "b"]
    for name in names:
        (store.root / "m").mkdir(parents=True, exist_ok=True)
        (store.root / "m" / name).write_bytes(b"x")
    (store.root / "m" / "gone").unlink()
    monkeypatch.setattr(module.os, "walk", lambda top: [(str(store.root / "m"), [], names)])
    assert [entry.key for entry in store.list("m")] == ["m/a", "m/b"]


def test_an_etag_is_another_for_another_size_or_time(store: LocalStore) -> None:
    tags = set()
    for data, time in ((b"one", 1), (b"four", 1), (b"one", 2)):
        store.write("k", data)
        os.utime(store.root / "k", (time, time))
        entry = store.stat("k")
        assert entry is not None
        tags.add(entry.etag)
    assert len(tags) == 3


def test_a_key_below_a_file_is_not_there(store: LocalStore, tmp_path: Path) -> None:
    store.write("file", b"x")
    for call in (
        store.read,
        lambda key: store.download(key, tmp_path / "out"),
        lambda key: store.move_prefix(key, "y"),
    ):
        with pytest.raises(NotFound, match="has no file/below"):
            call("file/below")
    assert store.stat("file/below") is None and not (tmp_path / "out").exists()


def test_the_root_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert LocalStore("~/store").root == tmp_path / "store"


def test_keys_are_joined_by_one_slash_and_names_of_files_come_in_order(tmp_path: Path) -> None:
    assert join("", "a/", "/", "/b") == "a/b" and join("", "/") == ""
    assert files_in(build(tmp_path, {"b": "", "a/x/y": "", "c": "", "a/w": ""})) == [
        "a/w", "a/x/y", "b", "c",
    ]  # fmt: skip
    assert str(NotFound("the store has no x")) == "the store has no x" and str(NotFound()) == "not found"
