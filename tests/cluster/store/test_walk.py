"""A folder of somebody else's is read whole, each folder once, and nothing in it stops or delays a walk."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.store import walk as module
from cluster.store.source import digest_source, expand, look
from cluster.store.walk import beside_data, walk


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name, encoding="utf-8")


def names(folder: Path, pattern: str = "") -> list[str]:
    return [file.name for file in expand(f"{folder}{pattern}")]


@pytest.mark.parametrize("pattern", ["", "/**/*.txt", "/**"])
def test_linked_folders_and_files_are_read_and_each_folder_once(tmp_path: Path, pattern: str) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    write(data, "a/one.txt")
    write(other, "two.txt", "deep/three.txt")
    (data / "0-link").symlink_to(other)
    (data / "file.txt").symlink_to(other / "two.txt")
    (data / "again").symlink_to(other)  # a second name
    (data / "b").symlink_to(data / "a")  # the folder's own name comes before a link's
    (other / "deep" / "up").symlink_to(data)  # in a circle, through another folder
    (other / "self").symlink_to(other)
    assert names(data, pattern) == ["0-link/deep/three.txt", "0-link/two.txt", "a/one.txt", "file.txt"]
    passed = {one.name for one in look(f"{data}{pattern}").passed if one.reason == "read_already"}
    assert passed == {"again/", "b/", "0-link/self/", "0-link/deep/up/"}


def test_of_a_pattern_only_folders_are_looked_into_that_it_means(tmp_path: Path) -> None:
    write(tmp_path, "2023/x.txt", "4913/x.txt", "~old~/x.txt", "2023/deep/y.txt")
    (tmp_path / "latest").symlink_to("2023")
    assert names(tmp_path, "/*est/x.txt") == ["latest/x.txt"], "read by the link's name, the only one that is asked for"
    assert names(tmp_path, "/l*/**/*.txt") == ["latest/deep/y.txt", "latest/x.txt"]
    assert names(tmp_path, "/*/x.txt") == ["2023/x.txt", "4913/x.txt"] and names(tmp_path, "/*.txt") == []
    assert look(f"{tmp_path}/*.txt").passed == [] == look(f"{tmp_path}/l*/*").passed
    assert {tuple(one) for one in look(f"{tmp_path}/*/*.txt").passed} == {
        ("latest/", "read_already"),
        ("~old~/", "side_file"),
    }


def test_many_circles_take_no_time(tmp_path: Path) -> None:
    write(tmp_path, "x.txt")
    for i in range(30):
        (tmp_path / f"link{i}").symlink_to(tmp_path)
    assert names(tmp_path) == ["x.txt"] == names(tmp_path, "/**/*.txt")


@pytest.mark.parametrize("pattern", ["", "/*", "/*.txt", "/**/*"])
def test_what_is_no_file_is_passed_over_and_nothing_waits_for_it(
    tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "pipe-link.txt").symlink_to(tmp_path / "pipe.txt")
    (tmp_path / "null.txt").symlink_to("/dev/null")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    (tmp_path / "through.txt").symlink_to(tmp_path / "a.txt" / "b.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        listening.bind("socket.txt")
    assert names(tmp_path, pattern) == ["a.txt"]
    passed = {one.name: one.reason for one in look(f"{tmp_path}{pattern}").passed}
    special = dict.fromkeys(("pipe.txt", "pipe-link.txt", "null.txt", "socket.txt"), "special_file")
    assert passed == special | dict.fromkeys(("gone.txt", "loop.txt", "through.txt"), "dangling_link")


def test_what_may_not_be_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A superuser may read all, so permission is taken away here."""
    write(tmp_path, "a.txt", "b.txt", "closed/c.txt", "open/d.txt")
    monkeypatch.setattr(module.os, "access", lambda path, mode: not str(path).endswith("b.txt"))
    real = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(module.os, "scandir", scandir)
    found = walk(str(tmp_path))
    assert [name for name, _ in found.files] == ["a.txt", "open/d.txt"]
    assert sorted(found.passed) == [("b.txt", "unreadable"), ("closed/", "unreadable")]
    monkeypatch.setattr(module.os, "scandir", lambda path: scandir(tmp_path / "closed"))
    with pytest.raises(UserError, match=r"closed: Permission denied\."):
        expand(tmp_path)


def test_a_name_that_is_no_utf_8_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "é.txt")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))).write_bytes(b"x")
    found = look(tmp_path)
    assert [f.name for f in found.files] == ["é.txt"]
    assert found.passed == [("caf\\xe9.txt", "odd_name")]


SIDE = [
    ".DS_Store",
    "._a.txt",
    ".git/config",
    "a/.b.txt.swp",
    "a.txt~",
    "#a.txt#",
    "Thumbs.db",
    "~$a.txt",
    "a/4913",
    "THUMBS.DB",
]


@pytest.mark.parametrize("name", [*SIDE, "_SUCCESS", "__MACOSX/a.txt", "a/__pycache__/b.txt", ".#a.txt", "a.txt.swp"])
def test_what_editors_and_systems_leave_changes_nothing(tmp_path: Path, name: str) -> None:
    write(tmp_path, "a.txt", "a/b.txt")
    before = digest_source(tmp_path), names(tmp_path), names(tmp_path, "/**/*")
    write(tmp_path, name)
    assert (digest_source(tmp_path), names(tmp_path), names(tmp_path, "/**/*")) == before
    assert [one.name for one in look(tmp_path).passed if name.startswith(one.name)], "and it is named"
    assert names(tmp_path / name) == [Path(name).name], "a person may ask for it"
    write(tmp_path, "a/c.txt")
    assert digest_source(tmp_path) != before[0]


@pytest.mark.parametrize(
    "name",
    ["a.txt", "_part-0.jsonl", "a~b.txt", "a#.txt", "x.swap", "d/data.1.txt", "4913.txt", "4913/a.txt", "4913/"],
)
def test_ordinary_names_are_no_side_files(name: str) -> None:
    assert beside_data(name) is None


def test_one_path_that_is_no_file_is_refused_in_words(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to("nowhere")
    for name, words in (("pipe", "pipe is a named pipe, which can be read once only"), ("gone", "link to 'nowhere'")):
        with pytest.raises(UserError, match=re.escape(words)):
            digest_source(tmp_path / name)
    with pytest.raises(UserError, match="/dev/zero is a device"):
        expand("/dev/zero")
