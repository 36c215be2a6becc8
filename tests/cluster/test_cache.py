"""The cache is in the home, or where it was said to be, or where it can be."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from cluster.cache import cache_root, own_temporary
from cluster.errors import UserError


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TOKENMILL_CACHE")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()


def test_it_is_where_it_was_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "here"))
    assert cache_root() == tmp_path / "here"


def test_it_is_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home" / ".cache" / "tokenmill"


@pytest.mark.parametrize("home", ["/dev/null", "/proc/nowhere"])
def test_a_home_that_can_t_be_written_is_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str
) -> None:
    monkeypatch.setenv("HOME", home)
    assert cache_root().is_relative_to(tmp_path / "tmp")


def test_the_temporary_folder_is_this_user_s_alone(tmp_path: Path) -> None:
    made = own_temporary()
    assert made.parent == tmp_path / "tmp" and made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o755)  # as an older version left it
    assert own_temporary() == made and made.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["link", "file", "writable", "another's"])
def test_one_that_another_could_have_prepared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    place = tmp_path / "tmp" / f"tokenmill-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir()
    if kind == "link":
        place.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        place.write_text("", encoding="utf-8")
    else:
        place.mkdir()
        place.chmod(0o777 if kind == "writable" else 0o700)
    if kind == "another's":
        number = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: number + 1)
        place.rename(place.with_name(f"tokenmill-{number + 1}"))
    with pytest.raises(UserError, match=r"set TMPDIR to a folder of your own"):
        own_temporary()
    assert not list((tmp_path / "elsewhere").iterdir())
