"""A name out of a file leads down from its folder, or is refused: by its letters, and by the links that it meets."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.inside import Outside, check_links, inside, plain_name

WRONG = [
    "", ".", "..", "../x", "a/../b", "a/..", "a//b", "a/", "/x", "//x", "/", "./x", "a/./b", "...", "a/. ./b", " ",
    "a/ /b", "\\x", "a\\b", "..\\x", "C:x", "c:/x", "C:\\x", "\\\\host\\share", "a\0b", "\n", "a\x1b[2Jb", "a\x7f",
    "a\x85b", "a\u2028b",
    "\ud800", "con", "NUL", "a/aux.txt", "Com1.bin", "lpt9", "nul .txt", "x" * 256, "ü" * 128,
    "/".join(["x" * 200] * 6),
    None, 3, b"x", ["x"], {"x": 1}, True,
]  # fmt: skip
RIGHT = [
    "x", "a/b.txt", ".hidden", "a..b", "..x", "x..", "model-00001-of-00002.safetensors", "naïve ü.json",
    "日本語/語.bin",
    "．．/x", "e\u0301", "a b", "~", "~root/x", "$HOME", "%2e%2e", "-rf", "config", "console", "community", "ab:c",
    "x" * 255,
    "👩\u200d🔬.txt", "a.b.c", "a'b\"c", "*", "[x]",
]  # fmt: skip


@pytest.mark.parametrize("name", WRONG, ids=repr)
def test_a_name_that_may_lead_elsewhere_is_refused(name: object, tmp_path: Path) -> None:
    for of in (plain_name, lambda name: inside(tmp_path, name)):
        with pytest.raises(Outside, match=r"names .*A name leads to a file inside the folder"):
            of(name)
    with pytest.raises(Outside, match=r"^index\.json names "):
        plain_name(name, "index.json")


@pytest.mark.parametrize("name", RIGHT, ids=repr)
def test_an_ordinary_name_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    assert plain_name(name) == name
    path = inside(tmp_path, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x", encoding="utf-8")
    assert path == tmp_path / name and inside(tmp_path, name).read_text(encoding="utf-8") == "x"


@given(st.text(st.sampled_from("./\\ ~:aC\0\né·．"), max_size=12))
def test_whatever_is_taken_stays_in_the_folder_by_its_letters(name: str) -> None:
    try:
        plain_name(name)
    except Outside:
        return
    for form in (name, unicodedata.normalize("NFC", name)):
        assert os.path.normpath(f"/folder/{form}") == f"/folder/{form}" and form.isprintable()


def test_links_may_lead_anywhere_in_the_folder_and_nowhere_else(tmp_path: Path) -> None:
    folder, beside = tmp_path / "folder", tmp_path / "folder-2"
    for made in (folder / "sub", beside):
        made.mkdir(parents=True)
        (made / "file").write_text("x", encoding="utf-8")
    links = {
        "in": "sub/file", "around": "../folder/sub/file", "linked": "sub", "all": ".",
        "out": "../folder-2/file", "up": "..", "beside": "../folder-2", "absolute": str(beside / "file"),
        "through": "up/folder-2/file", "nothing": "../not-there", "circle": "circle",
    }  # fmt: skip
    for name, to in links.items():
        (folder / name).symlink_to(to)
    for name in ("in", "around", "linked/file", "all/sub/file", "all/linked/file", "sub/new", "linked/new"):
        assert inside(folder, name) == folder / name
    for name in ("out", "up/folder-2/file", "beside/file", "beside/new", "absolute", "through", "nothing", "all/out"):
        with pytest.raises(Outside, match=r"is a link to .*, outside of its folder"):
            inside(folder, name)
    by_a_link = tmp_path / "chosen"
    by_a_link.symlink_to(folder)  # the folder itself is its reader's choice
    assert inside(by_a_link, "in").read_text(encoding="utf-8") == "x"
    with pytest.raises(Outside, match="link"):
        inside(by_a_link, "out")


def hub(folder: Path, blobs: Path | None = None) -> Path:
    """The layout of the hub's cache, with one file."""
    snapshot, blob = folder / "models--a--b" / "snapshots" / "0f1e", folder / "models--a--b" / "blobs" / "5d41402a"
    (snapshot / "onnx").mkdir(parents=True)
    if blobs is None:
        blob.parent.mkdir()
    else:
        blob.parent.symlink_to(blobs)
    blob.write_text("{}", encoding="utf-8")
    (snapshot / "config.json").symlink_to("../../blobs/5d41402a")
    (snapshot / "onnx" / "model").symlink_to("../../../blobs/5d41402a")
    return snapshot


def test_the_links_of_a_hubs_own_cache_lead_to_its_blobs(tmp_path: Path) -> None:
    snapshot = hub(tmp_path)
    check_links(snapshot)
    assert inside(snapshot, "config.json").read_text(encoding="utf-8") == "{}"
    assert inside(snapshot, "onnx/model").read_text(encoding="utf-8") == "{}"
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0f1e", encoding="utf-8")
    (snapshot.parents[1] / "blobs" / "link").symlink_to(tmp_path / "secret")
    for number, to in enumerate(
        ("../../blobs/link", "../../refs/main", "../../../secret", "../../blobs", "../../blobs/..")
    ):
        (snapshot / f"x{number}").symlink_to(to)
        with pytest.raises(Outside, match="link"):
            inside(snapshot, f"x{number}")
        with pytest.raises(Outside, match=f"x{number} is a link"):
            check_links(snapshot)
        (snapshot / f"x{number}").unlink()


def test_a_hubs_blobs_are_no_way_to_another_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    snapshot = hub(tmp_path / "cache", elsewhere)
    with pytest.raises(Outside, match="link"):
        check_links(snapshot)


def test_a_link_to_nothing_is_left_to_whoever_reads_it(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to("not-there")
    check_links(tmp_path)
    check_links(tmp_path / "no folder")
