"""A file is kept whatever its writer does with it, by a link or by a copy."""

import os

import pytest

from cluster.tracking.follow import Follower


@pytest.fixture(params=["linked", "copied"])
def way(request, monkeypatch):
    if request.param == "copied":
        monkeypatch.setattr(os, "link", lambda *a, **k: (_ for _ in ()).throw(OSError("another file system")))
    return request.param


def test_a_file_is_there_before_its_writer_and_outlives_its_deletion(tmp_path, way):
    source, kept = tmp_path / "events.jsonl", tmp_path / "kept"
    follower = Follower(source, kept)
    with source.open("a", encoding="utf-8") as writer:  # quick: it is gone before the next look
        writer.write("one\n")
    source.unlink()
    follower.close()
    assert kept.read_text(encoding="utf-8") == "one\n"


def test_what_is_appended_later_is_kept_too_and_nothing_twice(tmp_path, way):
    source, kept = tmp_path / "events.jsonl", tmp_path / "kept"
    follower = Follower(source, kept)
    for word in ("one", "two"):
        with source.open("a", encoding="utf-8") as writer:
            writer.write(f"{word}\n")
        follower.poll()
    follower.close()
    follower.close()
    assert kept.read_text(encoding="utf-8") == "one\ntwo\n"


def test_a_copy_of_a_file_that_is_begun_anew_goes_on_with_its_new_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *a, **k: (_ for _ in ()).throw(OSError("another file system")))
    source, kept = tmp_path / "events.jsonl", tmp_path / "kept"
    follower = Follower(source, kept)
    source.write_text("old line\n", encoding="utf-8")
    follower.poll()
    source.write_text("new\n", encoding="utf-8")
    follower.close()
    assert kept.read_text(encoding="utf-8") == "old line\nnew\n"


def test_a_file_that_was_never_seen_is_taken_from_where_it_was_published(tmp_path):
    published, kept = tmp_path / "published", tmp_path / "kept"
    published.write_text("one\n", encoding="utf-8")
    Follower(tmp_path / "no folder" / "events.jsonl", kept).close(published)
    assert kept.read_text(encoding="utf-8") == "one\n"
    Follower(tmp_path / "no folder" / "events.jsonl", tmp_path / "none").close(tmp_path / "nowhere")
    assert not (tmp_path / "none").exists()
