"""The quick readers of the registry give what MLflow's own client gives, or leave the answer to it."""

import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from mlflow_server import ENV, Server
from tiny_mlflow import sqlite_place

from cluster.registry import versions as registry_module
from cluster.registry.client_reader import ClientReader
from cluster.registry.reader import Reader, Unsure
from cluster.registry.rest_reader import RestReader, can_ask
from cluster.registry.sqlite_reader import SqliteReader
from cluster.registry.versions import Registry
from cluster.tracking.place import Place, connect, locate

NAMES = ["plain", "it's", 'a "quoted" name', "per%cent_", "löwe 🦁", "back\\slash", "& ? # +"]
TEXTS = ["", "x", "it's", 'say "hi"', "two\nlines", "löwe 🦁", "a" * 4000, "50% & 1/2 \\ ; --", "null"]


def fill(uri: str, files: Path, seed: int) -> None:
    """Models with versions, aliases and tags, some of them deleted again; a prompt; a version of a logged model."""
    draw = random.Random(seed)
    client = connect(uri)
    experiment = client.create_experiment("registry", None if uri.startswith("http") else str(files))
    run = client.create_run(experiment).info.run_id
    for name in NAMES:
        client.create_registered_model(name, tags={draw.choice("ab"): draw.choice(TEXTS)})
        for number in range(1, draw.randrange(6) + 1):
            tags = {draw.choice(["tokenmill.fingerprint", "b", "c d", "e.f/g"]): draw.choice(TEXTS) for _ in range(3)}
            logged = client.create_logged_model(experiment, source_run_id=run) if draw.random() < 0.5 else None
            about = {"tags": tags, "description": draw.choice(TEXTS), "model_id": logged and logged.model_id}
            source = f"models:/{logged.model_id}" if logged and uri.startswith("http") else "s3://bucket/x"
            client.create_model_version(name, source, run if logged else draw.choice([None, run]), **about)
            for alias in draw.sample(["champion", "candidate", "Ünder-100"], draw.randrange(0, 3)):
                client.set_registered_model_alias(name, alias, str(number))
            if draw.random() < 0.3:
                client.delete_model_version(name, str(number))
    client.create_registered_model("deleted")
    client.create_model_version("deleted", "s3://bucket/x")
    client.delete_registered_model("deleted")
    client.register_prompt("prompt", "Say {{it}}.")


def outcome(ask: Callable[[], object]) -> object:
    try:
        return ask()
    except Unsure:
        raise
    except Exception as error:
        return type(error).__name__


def assert_equal_answers(quick: Reader, slow: Reader) -> None:
    assert sorted(quick.names()) == sorted(slow.names())
    assert {"deleted", "prompt"}.isdisjoint(quick.names())
    seen = 0
    for name in [*NAMES, "deleted", "prompt", "never"]:
        assert quick.aliases(name) == slow.aliases(name)
        assert sorted(quick.versions(name), key=lambda v: v.version) == sorted(
            slow.versions(name), key=lambda v: v.version
        )
        for value in TEXTS[1:]:
            tag = ("tokenmill.fingerprint", value)
            numbers = [sorted(v.version for v in reader.versions(name, tag)) for reader in (quick, slow)]
            assert numbers[0] == numbers[1], (name, value)
            seen += len(numbers[0])
        for number in range(7):
            found = quick.version(name, number)
            assert found == slow.version(name, number)
            if found:
                assert quick.location(name, number) == slow.location(name, number)
    assert seen


@pytest.mark.parametrize("seed", range(3))
def test_the_sqlite_reader_answers_as_mlflow_s_client_does(tmp_path, seed):
    place = sqlite_place(tmp_path)
    fill(place.uri, tmp_path, seed)
    with sqlite3.connect(place.database) as connection:  # as a server stores it
        (of_model,) = connection.execute("SELECT 'models:/' || min(model_id) FROM logged_models").fetchone()
        connection.execute("UPDATE model_versions SET storage_location = ? WHERE version = 2", [of_model])
    connection.close()
    assert_equal_answers(SqliteReader(place.database), ClientReader(connect(place.uri)))


@pytest.mark.slow
def test_the_rest_reader_answers_as_mlflow_s_client_does(tmp_path, monkeypatch):
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    server = Server(tmp_path)
    server.start()
    try:
        fill(server.url, tmp_path, 0)
        for page in (2, 100):
            quick = RestReader(server.url)
            quick.page = page
            assert_equal_answers(quick, ClientReader(connect(server.url)))
    finally:
        server.kill()


QUICK = """
import sys
from cluster.registry.versions import Registry
from cluster.tracking.place import Place
from pathlib import Path

place = Place(sys.argv[1], None, Path(sys.argv[2]))
registry = Registry(place)
version = registry.get("models:/plain@champion")
assert registry.names() and registry.versions("plain") and registry.find("plain", "f1") == version
assert registry.location(version)
assert "mlflow" not in sys.modules and "sqlalchemy" not in sys.modules
"""


def champion(uri: str) -> None:
    client = connect(uri)
    client.create_registered_model("plain")
    client.create_model_version("plain", "s3://bucket/x", tags={"tokenmill.fingerprint": "f1"})
    client.set_registered_model_alias("plain", "champion", "1")


def test_look_ups_in_a_sqlite_file_import_no_mlflow(tmp_path):
    place = sqlite_place(tmp_path)
    champion(place.uri)
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-c", QUICK, place.uri, tmp_path], env=env, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def place(tmp_path) -> Place:
    made = sqlite_place(tmp_path)
    champion(made.uri)
    return made


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE alembic_version SET version_num = 'ffffffffffff'",
        "INSERT INTO alembic_version VALUES ('ffffffffffff')",
        "DELETE FROM alembic_version",
        "INSERT INTO registered_models (name, workspace) VALUES ('x', 'theirs')",
        "DROP TABLE registered_models",
    ],
)
def test_a_schema_that_is_not_known_is_left_to_the_client(place, change, monkeypatch):
    with sqlite3.connect(place.database) as connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(Unsure):
        SqliteReader(place.database).aliases("plain")
    asked = []
    monkeypatch.setattr(registry_module, "connect", lambda uri: asked.append(uri))
    monkeypatch.setattr(registry_module, "ClientReader", lambda client: Answers())
    assert Registry(place).names() == ["the client's"]
    assert asked == [place.uri]


class Answers:
    def names(self):
        return ["the client's"]


@pytest.mark.parametrize("name", ["MLFLOW_REGISTRY_URI", "MLFLOW_ENABLE_WORKSPACES"])
def test_a_registry_elsewhere_and_workspaces_are_left_to_the_client(place, name, monkeypatch):
    monkeypatch.setenv(name, "true")
    monkeypatch.setattr(registry_module, "connect", lambda uri: uri)
    monkeypatch.setattr(registry_module, "ClientReader", lambda client: Answers())
    assert Registry(place).names() == ["the client's"]


def test_a_file_that_another_process_writes_is_waited_for_and_is_not_locked_by_readers(place):
    writer = sqlite3.connect(place.database, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")  # others may read until it commits
    assert SqliteReader(place.database).aliases("plain") == {"champion": 1}
    writer.execute("UPDATE registered_model_aliases SET alias = 'other'")
    writer.execute("COMMIT")
    writer.close()
    assert SqliteReader(place.database).aliases("plain") == {"other": 1}


def test_a_file_whose_name_is_odd_is_read(tmp_path):
    folder = tmp_path / "50% of #1"
    folder.mkdir()
    place = sqlite_place(folder)
    champion(place.uri)
    assert SqliteReader(place.database).names() == ["plain"]


def test_a_huge_version_number_is_not_there(place):
    with pytest.raises(LookupError, match="it has 1"):
        Registry(place).get(f"models:/plain/{10**30}")


# -- a server's answers ----------------------------------------------------------------------------------------------


@pytest.fixture
def answering():
    """A server that gives the status, headers and body it is told, and notes what it was asked."""
    asked, answer = [], {"status": 200, "body": b"{}", "headers": {}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(answer["status"])
            for key, value in answer["headers"].items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(answer["body"])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answer, asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "answer",
    [
        {"body": b"<html>please log in</html>"},
        {"body": b"[]"},
        {"body": b"{}"},
        {"status": 404, "body": b"not found"},
        {"status": 404, "body": b'{"error_code": "ENDPOINT_NOT_FOUND"}'},
        {"status": 401, "body": b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}'},
        {"status": 503, "body": b""},
        {"status": 302, "headers": {"Location": "http://127.0.0.1:9/"}},
    ],
)
def test_an_answer_that_is_not_mlflow_s_is_left_to_the_client(answering, answer):
    url, given, _ = answering
    given.update(answer)
    with pytest.raises(Unsure):
        RestReader(url).aliases("plain")


def test_what_a_server_does_not_have_is_not_there(answering):
    url, given, _ = answering
    given.update(status=404, body=b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}')
    assert RestReader(url).aliases("plain") is None
    assert RestReader(url).version("plain", 1) is None


def test_a_server_that_is_away_is_left_to_the_client():
    with pytest.raises(Unsure):
        RestReader("http://127.0.0.1:9").names()


def test_a_password_goes_to_the_server_and_no_further(answering, monkeypatch):
    url, given, asked = answering
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    RestReader(url).names()
    assert asked[-1] == ("/api/2.0/mlflow/registered-models/search?max_results=100", "Bearer secret")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pass")
    given.update(status=302, headers={"Location": f"{url}/elsewhere"})
    with pytest.raises(Unsure):
        RestReader(url).names()
    assert asked[-1] == ("/api/2.0/mlflow/registered-models/search?max_results=100", "Basic bWU6cGFzcw==")


def test_ways_to_log_in_that_only_the_client_knows_are_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    known = {"MLFLOW_TRACKING_URI": "http://x", "MLFLOW_TRACKING_TOKEN": "t", "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}
    assert can_ask(known)
    for name in ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_WORKSPACE", "NETRC"):
        assert not can_ask({**known, name: "x"})
    (tmp_path / ".netrc").touch()
    assert not can_ask(known)


def test_a_server_s_registry_is_read_over_rest(answering, monkeypatch, tmp_path):
    url, given, asked = answering
    monkeypatch.setenv("HOME", str(tmp_path))
    given["body"] = b'{"registered_models": [{"name": "b"}, {"name": "a"}]}'
    assert Registry(locate(tmp_path / "store", url)).names() == ["a", "b"]
    assert len(asked) == 1
