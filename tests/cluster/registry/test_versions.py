"""What Registry makes of a registry's records, and how a name finds its folder."""

from types import SimpleNamespace
from urllib.parse import quote

import pytest
from tiny_mlflow import sqlite_place

from cluster.registry import find
from cluster.registry.find import FILES, INSIDE, model_folder
from cluster.registry.versions import Registry, Version, parse
from cluster.tracking.place import Place, connect


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return sqlite_place(tmp_path)


def test_tags_that_a_person_has_written_break_no_look_up(place):
    client = connect(place.uri)
    client.create_registered_model("m")
    tags = {"tokenmill.metrics": "[1]", "tokenmill.lineage": "no JSON", "tokenmill.parameters": "many"}
    client.create_model_version("m", "s3://bucket/x", tags=tags)
    (found,) = Registry(place).versions("m")
    assert (found.metrics, found.lineage, found.parameters) == ({}, {}, 0)


def test_of_two_versions_of_one_fingerprint_the_first_is_found(place):
    client = connect(place.uri)
    client.create_registered_model("m")
    for _ in range(3):
        client.create_model_version("m", "s3://bucket/x", tags={"tokenmill.fingerprint": "f"})
    client.update_model_version("m", "2", "the last to change")
    assert [v.version for v in Registry(place).versions("m")] == [3, 2, 1]  # newest first
    assert Registry(place).find("m", "f").version == 1
    assert Registry(place).find("m", "other") is None
    assert Registry(place).find("never", "f") is None


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_files_on_this_machine_are_used_where_they_are(place, tmp_path, scheme):
    inside = tmp_path / "a model%20 #1?" / INSIDE
    inside.mkdir(parents=True)
    for name in FILES:
        (inside / name).touch()
    folder = str(inside.parents[1])
    client = connect(place.uri)
    client.create_registered_model("m")
    client.create_model_version("m", f"{scheme}{quote(folder)}" if scheme else folder)
    client.create_model_version("m", str(tmp_path / "gone"))
    assert model_folder("models:/m/1", place) == inside
    assert Registry(place).local_files(Registry(place).get("models:/m/2")) is None


def test_two_processes_that_download_one_model_both_get_it(place, tmp_path, monkeypatch):
    """The second finds the first's copy in its place."""
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "cache"))
    client = connect(place.uri)
    client.create_registered_model("m")
    client.create_model_version("m", "s3://bucket/x")
    import mlflow.artifacts

    def listed(uri, tracking_uri):
        assert uri == f"s3://bucket/x/{INSIDE}"
        return [SimpleNamespace(path=f"{INSIDE}/{name}", is_dir=False) for name in (*FILES, "other.bin")]

    def download(artifact_uri, dst_path, tracking_uri):
        folder, _, name = artifact_uri.rpartition("/")
        assert folder == f"s3://bucket/x/{INSIDE}" and name in FILES, "no file but ours is fetched"
        got = find.Path(dst_path)
        others = got.parents[1] / key
        others.mkdir(exist_ok=True)
        for place in (got, others):
            (place / name).write_text(place.name, encoding="utf-8")
        return str(got / name)

    version = Registry(place).get("models:/m/1")
    text = f"{place.uri}|{version.uri}|{version.created}|{version.source}"
    key = find.hashlib.sha256(text.encode()).hexdigest()[:20]
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
    monkeypatch.setattr(mlflow.artifacts, "list_artifacts", listed)
    folder = model_folder("models:/m/1", place)
    assert (folder / FILES[0]).read_text(encoding="utf-8") == key
    assert [p.name for p in (tmp_path / "cache" / "models").iterdir()] == [key]


@pytest.mark.parametrize("uri", ["models:/a/²", "models:/a/-1", "models:/a/1.0"])
def test_a_version_is_a_number(uri):
    with pytest.raises(ValueError, match="a number"):
        parse(uri)


def test_a_version_s_uri_names_it():
    version = Version("m", 3, (), {}, "", "", "", "")
    assert parse(version.uri) == ("m", None, 3)
