"""Where MLflow is, how it is asked, and its experiments when others make or delete them."""

import os
import subprocess
import sys

import pytest
from tiny_mlflow import sqlite_place

from cluster.tracking.place import QUIET, connect, experiment_id, locate


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
