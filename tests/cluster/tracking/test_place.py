"""Where MLflow is, how it is asked, and its experiments when others make or delete them."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_mlflow import sqlite_place

from cluster.registry.versions import Registry
from cluster.store import open_store
from cluster.tracking.place import KIND, QUIET, TRAINING, connect, database_of, experiment_id, locate


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_an_experiment_is_made_once_and_found_again(tmp_path):
    place = sqlite_place(tmp_path)
    client = connect(place.uri)
    made = experiment_id(client, "a/b c", place.artifact_root)
    assert experiment_id(client, "a/b c", place.artifact_root) == made
    assert client.get_experiment(made).artifact_location == f"{tmp_path}/mlartifacts/a_b_c"


def test_a_deleted_experiment_is_brought_back(tmp_path):
    place = sqlite_place(tmp_path)
    client = connect(place.uri)
    made = experiment_id(client, "line", place.artifact_root)
    client.delete_experiment(made)
    assert experiment_id(client, "line", place.artifact_root) == made
    assert client.get_experiment(made).lifecycle_stage == "active"


@pytest.mark.parametrize(
    ("before", "after"), [({}, TRAINING), ({KIND: "no_inferred_type"}, TRAINING), ({KIND: "finetuning"}, "finetuning")]
)
def test_an_experiment_opens_with_training_runs_unless_someone_chose_otherwise(tmp_path, before, after):
    place = sqlite_place(tmp_path)
    client = connect(place.uri)
    client.create_experiment("old", None, before)
    for name, kind in (("old", after), ("new", TRAINING)):
        made = experiment_id(client, name, place.artifact_root)
        assert client.get_experiment(made).tags[KIND] == kind


def test_an_experiment_that_another_process_makes_meanwhile_is_taken(tmp_path, monkeypatch):
    place = sqlite_place(tmp_path)
    client = connect(place.uri)
    made = client.create_experiment("line")
    real, asked = client.get_experiment_by_name, []

    def look(name):
        asked.append(name)
        return None if len(asked) == 1 else real(name)

    monkeypatch.setattr(client, "get_experiment_by_name", look)
    assert experiment_id(client, "line", place.artifact_root) == made


def test_what_the_user_has_set_for_mlflow_wins():
    env = {**os.environ, "MLFLOW_HTTP_REQUEST_TIMEOUT": "7"}
    env.pop("MLFLOW_HTTP_REQUEST_MAX_RETRIES", None)
    code = (
        "import os; from cluster.tracking.place import import_quietly; import_quietly();"
        "print(os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT'], os.environ['MLFLOW_HTTP_REQUEST_MAX_RETRIES'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert done.stdout.split() == ["7", QUIET["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]]


def test_what_is_not_delivered_yet_is_kept_by_store(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "cache"))
    states = [locate(url).state for url in ("s3://bucket/a", "s3://bucket/b", "s3://bucket/a", tmp_path / "store")]
    assert states[0] == states[2] != states[1]
    assert states[0].parent == states[1].parent == tmp_path / "cache" / "tracking"
    assert states[3] == tmp_path / "store" / "work" / "tracking"


FOLDERS = ["a b", "a#b", "a%20b", "100%", "a?b=c&d", "größe 模型", "it's", 'say "x"', "-dash", "[x]*", "a;b", "a\\b"]


@pytest.mark.parametrize("name", FOLDERS)
def test_any_folder_can_be_the_working_folder(tmp_path, monkeypatch, name):
    """The database and the files are in it, and nothing is beside it."""
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    place = sqlite_place(folder)
    assert (place.database, database_of(place.uri)) == (folder / "mlflow.db", folder / "mlflow.db")
    client = connect(place.uri)
    experiment = experiment_id(client, "line", place.artifact_root)
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "hello", "a.txt")
    assert next((folder / "mlartifacts").rglob("a.txt")).read_text(encoding="utf-8") == "hello"
    logged = client.create_logged_model(experiment, name="m", source_run_id=run)
    (folder / "package").mkdir()
    (folder / "package" / "MLmodel").touch()
    client.log_model_artifacts(logged.model_id, str(folder / "package"))
    client.create_registered_model("m")
    client.create_model_version("m", logged.artifact_location, run)
    registry = Registry(place)
    assert (registry.local_files(registry.get("models:/m/1")) / "MLmodel").exists()
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_database_is_made_in_a_folder_of_any_name(tmp_path, monkeypatch):
    folder = tmp_path / """a%20b?c=d #ü'"[x]*"""
    folder.mkdir()
    monkeypatch.chdir(folder)
    place = locate("store")
    connect(place.uri)
    assert (folder / "mlflow.db").stat().st_size > 0
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("given", ["sqlite:////x/a%20b/m.db", "sqlite:////x/a b/m.db?timeout=5"])
def test_a_given_database_is_the_file_that_sqlalchemy_would_open(given):
    from sqlalchemy import make_url

    place = locate("store", given)
    assert str(place.database) == make_url(given).database == make_url(place.uri).database == "/x/a b/m.db"


@pytest.mark.parametrize("path", [str(Path(sys.executable).parent), "/nowhere"])
def test_the_command_that_shows_a_database_is_one_that_a_shell_finds(tmp_path, monkeypatch, path):
    monkeypatch.setenv("PATH", path)
    program, *words = shlex.split(locate(tmp_path / "a b" / "store").command)
    assert shutil.which(program) and words == ["ui", "--backend-store-uri", f"sqlite:///{tmp_path}/a b/mlflow.db"]


def test_a_store_by_its_file_url_has_the_tracking_of_its_folder(tmp_path):
    assert locate(f"file://{tmp_path}/a store") == locate(tmp_path / "a store")
    assert open_store(f"file://{tmp_path}/a store").url == open_store(tmp_path / "a store").url
