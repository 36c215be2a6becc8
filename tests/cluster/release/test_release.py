"""Release: versions, aliases, the gate's trace in the registry, and the registered model in a fresh process."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from tiny_mlflow import runs, sqlite_place
from tiny_release import release_step

from cluster.registry.find import FILES, model_folder
from cluster.registry.versions import Registry, parse
from cluster.release.package import count_parameters
from cluster.serve.generator import Generator
from cluster.stage import Hooks, Surroundings, run_step
from cluster.store.artifact import Artifacts
from cluster.tracking.place import connect, locate
from cluster.tracking.tracker import Tracker
from model.generate.decoding import TEXT


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Three releases of one name: a first champion, one that fails the gate, one that takes over."""
    folder = tmp_path_factory.mktemp("line")
    place = sqlite_place(folder)
    saved = os.environ.pop("MLFLOW_TRACKING_URI", None)
    artifacts = Artifacts(folder / "store")
    tracker = Tracker(place, "line", system_seconds=None)
    tracker.start_line("demo")
    run = tracker.stage("release", "f")
    hooks = Hooks(begin=lambda stage, ws: run if stage.name == "release" else None)
    around = Surroundings(recipe="tiny-recipe", hooks=hooks)
    made = [run_step(release_step(bpb=bpb), artifacts, around).artifact for bpb in (2.0, 2.5, 1.5)]
    run.finish()
    assert tracker.finish(timeout=60)
    yield folder, place, artifacts, made
    if saved is not None:
        os.environ["MLFLOW_TRACKING_URI"] = saved


def test_every_release_is_a_version_and_only_better_ones_are_champion(line):
    _, place, _, made = line
    assert [a.summary["version"] for a in made] == [1, 2, 3]
    assert [a.summary["gate"]["passed"] for a in made] == [True, False, True]
    assert [a.summary["aliases"] for a in made] == [["candidate", "champion"], ["candidate"], ["candidate", "champion"]]
    third, second, first = Registry(place).versions("tiny")
    assert (third.aliases, second.aliases, first.aliases) == (("candidate", "champion"), (), ())
    assert (third.gate, second.gate) == ("passed", "failed")
    assert "2.5 is not better than the champion's 2" in second.reason
    assert second.reason in second.description


def test_a_promotion_is_written_on_both_versions(line):
    _, place, _, _ = line
    third, second, first = Registry(place).versions("tiny")
    assert third.tags["tokenmill.previous_champion"] == first.uri
    assert first.tags["tokenmill.succeeded_by"] == third.uri
    assert "tokenmill.succeeded_by" not in second.tags


def test_a_version_knows_where_it_came_from(line):
    _, place, artifacts, made = line
    version = Registry(place).get("models:/tiny@champion")
    model = made[-1].manifest.inputs["model"]
    assert version.fingerprint == made[-1].fingerprint
    assert version.lineage == {"pretrain": f"model/{model.fingerprint}"}
    assert version.recipe == "tiny-recipe"
    assert version.metrics == {"bpb": 1.5, "bpb/prose": 1.6, "reward": 0.5}
    weights = artifacts.find("model", model.fingerprint).path() / "model.safetensors"
    import torch
    from safetensors.torch import load_file

    assert version.parameters == count_parameters(weights) == sum(t.numel() for t in load_file(weights).values())
    assert torch.is_tensor(next(iter(load_file(weights).values())))
    logged = runs(place, "line")["release"]
    assert version.run_id == logged.info.run_id
    assert logged.data.metrics["bpb"] == 1.5


def test_the_package_holds_safetensors_a_signature_and_no_pickle(line):
    _, place, _, _ = line
    registry = Registry(place)
    folder = registry.local_files(registry.get("models:/tiny/3"))
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert {f"artifacts/model/{f}" for f in FILES} == {f for f in files if f.startswith("artifacts/")}
    assert not [f for f in files if f.endswith((".pkl", ".pickle", ".pt", ".bin"))]
    assert {"MLmodel", "pyfunc.py", "input_example.json"} <= files
    requirements = (folder / "requirements.txt").read_text(encoding="utf-8").split()
    assert all("==" in r for r in requirements)
    assert {r.split("==")[0] for r in requirements} == {
        "torch", "numpy", "safetensors", "sentencepiece", "jinja2", "mlflow",
    }  # fmt: skip
    from mlflow.models import Model

    made = Model.load(str(folder))
    assert [c.name for c in made.signature.inputs] == ["prompt", "messages"]
    assert {p.name: p.default for p in made.signature.params} == asdict(TEXT) | {"stops": [], "logit_bias": []}


def test_a_release_that_is_repeated_registers_nothing_twice(line):
    _, place, artifacts, made = line
    again = run_step(release_step(bpb=1.5), artifacts)
    assert again.cached
    artifacts.store.delete_prefix(f"release/{made[-1].fingerprint}")  # it was killed before it published
    again = run_step(release_step(bpb=1.5), artifacts)
    assert (again.cached, again.artifact.summary["version"]) == (False, 3)
    assert again.artifact.summary["gate"] == made[-1].summary["gate"]
    assert len(Registry(place).versions("tiny")) == 3
    assert Registry(place).get("models:/tiny@champion").version == 3


def test_a_version_that_was_deleted_is_registered_again(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = sqlite_place(tmp_path)
    artifacts = Artifacts(tmp_path / "store")
    first = run_step(release_step(), artifacts)
    client = connect(place.uri)
    client.delete_model_version("tiny", str(first.artifact.summary["version"]))
    assert Registry(place).versions("tiny") == []
    again = run_step(release_step(), artifacts)
    assert not again.cached
    assert again.artifact.summary["gate"]["passed"]
    assert [v.aliases for v in Registry(place).versions("tiny")] == [("candidate", "champion")]


def test_an_mlflow_that_is_away_does_not_invalidate_a_release(line, monkeypatch):
    from cluster.release.release import still_valid

    _, _, _, made = line
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = release_step(tracking_uri="http://127.0.0.1:9").config
    assert still_valid(made[0], config)


def test_an_mlflow_that_is_away_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = "http://127.0.0.1:9"
    with pytest.raises(ConnectionError, match="does not answer"):
        run_step(release_step(tracking_uri=away), Artifacts(tmp_path / "store"))
    with pytest.raises(ConnectionError, match="MLFLOW_TRACKING_URI"):
        model_folder("models:/tiny@champion", locate(tmp_path / "store", away))


FRESH = """
import json, sys
import mlflow

model = mlflow.pyfunc.load_model("models:/tiny@champion")
messages = [{"role": "user", "content": "What is two plus three?"}]
params = {"max_new_tokens": 6, "temperature": 0.0}
print(json.dumps([
    model.predict("The quick", params=params),
    model.predict(["The quick", "def add("], params=params),
    model.predict(messages, params=params),
    model.predict({"messages": messages}, params=params),
    ["".join(model.predict_stream({"messages": messages}, params=params))],
    model.predict("The quick", params={"max_new_tokens": 6, "seed": 1}),
    model.predict("The quick", params={"max_new_tokens": 6, "seed": 1, "top_k": 1}),
    model.predict("The quick", params={**params, "stops": [STOP]}),
]))
for call in (model.predict, lambda x, params: list(model.predict_stream({"prompt": x}, params=params))):
    try:
        call("The quick", params={"tempreature": 0.0})
        sys.exit("taken")
    except mlflow.exceptions.MlflowException as error:
        assert "Did you mean 'temperature'" in str(error), error
"""


def test_the_registered_model_answers_in_a_fresh_process_without_pickle(line, tmp_path):
    _, place, _, _ = line
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PYTHONPATH"))}
    env |= {"MLFLOW_TRACKING_URI": place.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    greedy = Generator.load("models:/tiny@champion", place).complete("The quick", max_new_tokens=6, temperature=0.0)
    stop = greedy[2:4]
    done = subprocess.run(
        [sys.executable, "-c", FRESH.replace("STOP", repr(stop))],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    text, two, chat, same_chat, streamed, sampled, likeliest, stopped = json.loads(done.stdout)
    generator = Generator.load("models:/tiny@champion", place)
    options = {"max_new_tokens": 6, "temperature": 0.0}
    messages = [{"role": "user", "content": "What is two plus three?"}]
    assert text == [generator.complete("The quick", **options)] == two[:1]
    assert two[1:] == [generator.complete("def add(", **options)]
    assert chat == same_chat == streamed == [generator.chat(messages, **options)]
    assert sampled == [generator.complete("The quick", max_new_tokens=6, seed=1)] != text
    assert likeliest == text and stopped == [greedy.partition(stop)[0]]
    assert "type hints" not in done.stderr


def test_models_are_found_by_uri_and_by_folder(line):
    _, place, artifacts, made = line
    champion = model_folder("models:/tiny@champion", place)
    assert champion == model_folder("models:/tiny/3", place) == model_folder("models:/tiny", place)
    assert (champion / "model.safetensors").is_file()
    made_folder = artifacts.find("model", made[0].manifest.inputs["model"].fingerprint).path()
    assert model_folder(made_folder) == made_folder
    assert model_folder(champion.parent.parent) == champion  # an MLflow model's own folder


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("models:/tiny@champoin", "no alias @champoin; it has @candidate, @champion"),
        ("models:/tiny/9", "no version 9; it has 3, 2, 1"),
        ("models:/tyni@champion", "No model 'tyni' is registered. Did you mean tiny"),
        ("tiny", "the registered model is written models:/tiny@champion"),
        ("tinny", "Did you mean tiny"),
        ("./nowhere", "There is no folder nowhere"),
    ],
)
def test_a_model_that_is_not_there_is_named_with_what_is(line, model, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LookupError, match=message):
        model_folder(model, line[1])


def test_looking_up_makes_no_database(tmp_path):
    with pytest.raises(LookupError, match="There is no MLflow database"):
        Registry(locate(tmp_path / "store")).names()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("uri", ["models:/a/b/c", "models:/a/latest", "models:/", "a@b", "models:/a@"])
def test_a_malformed_uri_is_refused(uri):
    with pytest.raises(ValueError, match="models:/NAME@ALIAS"):
        parse(uri)
    assert parse("models:/a@b") == ("a", "b", None)
    assert parse("models:/a/3") == ("a", None, 3)


def test_a_folder_that_lacks_files_says_which(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(LookupError, match=r"has no model\.safetensors, tokenizer\.model, tokenizer\.json"):
        model_folder(tmp_path)


def test_a_long_prompt_is_cut_and_still_answered(line):
    generator = Generator.load("models:/tiny@champion", line[1])
    ids = generator.encode("word " * 500, max_new_tokens=16)
    assert len(ids) == 64 - 16
    assert ids[0] == generator.tokenizer.bos_id
    pieces = list(generator.stream("word " * 500, max_new_tokens=16, seed=3))
    assert "".join(pieces) == generator.complete("word " * 500, max_new_tokens=16, seed=3)
    with pytest.raises(ValueError, match="max_new_tokens"):
        generator.complete("x", max_new_tokens=0)


def test_no_database_of_mlflows_own_is_left_in_the_working_folder(line):
    assert not Path("mlflow.db").exists() or Path("mlflow.db").stat().st_mtime < line[0].stat().st_mtime


def test_a_release_of_an_s3_store_keeps_its_files_there(s3_url, tmp_path, monkeypatch):
    s3_url = f"{s3_url}/release"
    monkeypatch.chdir(tmp_path)  # the database is in the working folder
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "cache"))
    sqlite_place(tmp_path)
    place = locate(s3_url)
    tracker = Tracker(place, "line", system_seconds=None)
    tracker.start_line("demo", recipe_text="name = 'demo'")
    outcome = run_step(release_step(), Artifacts(s3_url))
    assert tracker.finish(timeout=60)
    assert outcome.artifact.summary["aliases"] == ["candidate", "champion"]
    version = Registry(place).get("models:/tiny@champion")
    assert version.source.startswith(f"{s3_url}/mlflow/")
    folder = model_folder("models:/tiny@champion", place)
    assert folder.is_relative_to(tmp_path / "cache")
    assert model_folder("models:/tiny/1", place) == folder  # downloaded once
    assert Generator(folder).complete("The", max_new_tokens=4, temperature=0)
    run = runs(place, "line")["demo"]
    assert run.info.artifact_uri.startswith(f"{s3_url}/mlflow/line/")
    assert not (tmp_path / "mlartifacts").exists()
