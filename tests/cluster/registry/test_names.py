"""A name is taken if MLflow's registry, its URIs and its searches all take it; any other is refused in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_mlflow import sqlite_place

from cluster.errors import UserError
from cluster.registry.names import checked_name, logged_name
from cluster.registry.versions import Registry, parse
from cluster.tracking.place import connect

ORDINARY = ["tiny-0.5b", "a", "Llama-3.1_8B", "v1.0.0", "größe", "模型", "7b", "a..b", "x" * 200]
REFUSED = [
    "a@b", "a/1", "a:b", "models:/a", "a%20b", "it's", 'say "x"', "a?b", "a#b", "", ".", "..", "-a", " a", "a ", "a b",
    "a\n", "a\\b", "a\u200bb", "x" * 201, "ü" * 101, "~", "a`b",
]  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_would_fail_or_mean_two_things_is_refused_in_words(name):
    with pytest.raises(UserError, match=r"letters, digits, dashes, dots|at most 200 bytes"):
        checked_name(name)


def test_ordinary_names_are_registered_searched_and_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = sqlite_place(tmp_path)
    client = connect(place.uri)
    for name in ORDINARY:
        client.create_registered_model(checked_name(name))
        client.create_model_version(name, "s3://bucket/x", tags={"tokenmill.fingerprint": "f"})
        client.set_registered_model_alias(name, "champion", "1")
        assert Registry(place).get(f"models:/{name}@champion").uri == f"models:/{name}/1"
        assert Registry(place).find(name, "f").version == 1


@given(st.text(max_size=12))
def test_what_is_taken_names_one_version_by_each_of_its_uris(name):
    from mlflow.store.artifact.utils.models import _parse_model_uri
    from mlflow.utils.validation import _validate_logged_model_name, _validate_model_name

    try:
        checked_name(name)
    except UserError:
        return
    _validate_model_name(name)
    _validate_logged_model_name(logged_name(name))
    assert parse(f"models:/{name}@champion") == (name, "champion", None)
    assert parse(f"models:/{name}/1") == (name, None, 1)
    theirs = _parse_model_uri(f"models:/{name}@champion"), _parse_model_uri(f"models:/{name}/1")
    assert [(t.name, t.alias, t.version) for t in theirs] == [(name, "champion", None), (name, None, "1")]
