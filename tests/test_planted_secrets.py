"""Secrets are planted wherever a person could put one; then all that was shown, sent and written is searched."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from flows.prefect_server import EmbeddedServer
from tests.fake_mlflow import FakeMlflow
from tests.files import ROOT

PLANTED = {
    name: f"Zq{i}/planted+{name}7"
    for i, name in enumerate([
        "mlflow", "mlflow_token", "aws", "aws_session", "endpoint", "prefect", "prefect_auth", "hf", "proxy", "comment",
        "store", "source", "token", "key", "ray", "set", "registry",
    ])
}  # fmt: skip
QUOTED = {name: quote(secret, safe="") for name, secret in PLANTED.items()}
TINY = """
name = "tiny"
store = "store"
# http://me:{comment}@nowhere is a note
[[sources]]
name = "web"
path = "web.jsonl"
[filter]
rules = []
[filter.dedup]
near = false
[tracking]
uri = "http://ann:{mlflow}@127.0.0.1:{port}"
[cluster]
workers = 0
"""


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "RAY_", "AWS_"))}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "PREFECT_HOME": str(folder / "prefect"),
        "TOKENMILL_CACHE": str(folder / "cache"),
        "MLFLOW_TRACKING_TOKEN": PLANTED["mlflow_token"],
        "AWS_ACCESS_KEY_ID": "ann",
        "AWS_SECRET_ACCESS_KEY": PLANTED["aws"],
        "AWS_SESSION_TOKEN": PLANTED["aws_session"],
        "PREFECT_API_AUTH_STRING": f"ann:{PLANTED['prefect_auth']}",
        "HF_TOKEN": PLANTED["hf"],
        "HTTPS_PROXY": f"http://ann:{QUOTED['proxy']}@127.0.0.1:9",
        **more,
    }


# The command, which asks an S3 that is away four times, not for a minute.
IMPATIENT = (
    "from cluster.store import s3_client; s3_client.ROUNDS = s3_client.ATTEMPTS = 2; "
    "from flows.__main__ import main; main()"
)


def run(folder: Path, *words: str, **more: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, *words],
        cwd=folder,
        env=environment(folder, **more),
        capture_output=True,
        text=True,
        timeout=400,
        encoding="utf-8",
    )
    return done.returncode, done.stdout + done.stderr


def found_in(data: bytes) -> list[str]:
    """The names of the secrets that are in some bytes, as they are, quoted, or as JSON and SQL write them."""
    forms = {name: {secret, QUOTED[name], secret.replace("/", "\\/")} for name, secret in PLANTED.items()}
    return [name for name, secrets in forms.items() if any(s.encode() in data for s in secrets)]


def found_below(folder: Path, own: set[str]) -> dict[str, list[str]]:
    """What is found in each file below a folder, but for the person's own."""
    files = [p for p in folder.rglob("*") if p.is_file() and str(p.relative_to(folder)) not in own]
    return {str(p.relative_to(folder)): names for p in files if (names := found_in(p.read_bytes()))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [json.dumps({"text": f"document number {i} has some words of its own"}) for i in range(60)]
    (tmp_path / "web.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


@pytest.fixture
def prefect_url(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Prefect API, whose database lies below the folder, with a user and a password in its address."""
    monkeypatch.setenv("PREFECT_HOME", str(folder / "server"))
    server = EmbeddedServer()
    server.start()
    try:
        yield str(server.wait()).replace("://", f"://ann:{QUOTED['prefect']}@")
    finally:
        server.stop()


def test_the_search_finds_what_is_planted(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(f"x http://u:{QUOTED['key']}@h {PLANTED['ray']}", encoding="utf-8")
    assert found_below(tmp_path, set()) == {"a": ["key", "ray"]}


@pytest.mark.slow
def test_a_run_keeps_every_secret_to_itself(folder: Path, prefect_url: str) -> None:
    """It tells an MLflow and a Prefect server, writes its store and its log; then it fails at a source that is away."""
    with FakeMlflow(folder / "mlflow") as server:
        recipe = TINY.format(**QUOTED, port=server.port)
        (folder / "tiny.toml").write_text(recipe, encoding="utf-8")
        code, said = run(folder, "run", "tiny.toml", "--until", "filter", PREFECT_API_URL=prefect_url)
        login = base64.b64encode(f"ann:{PLANTED['mlflow']}".encode()).decode()
        assert code == 0, said
        assert server.logins == {f"Basic {login}"}  # so it was dialled with its user and password
        assert any("recipe.toml" in str(p) for p in (folder / "mlflow").rglob("*"))
        assert found_in("\n".join(server.sent).encode()) == []
    assert found_in(said.encode()) == []
    # The server is gone: what libraries say of it, with what is left undelivered.
    code, away = run(folder, "run", "tiny.toml", "--until", "filter", PREFECT_API_URL=prefect_url)
    assert code == 0, away
    assert "has not got" in away
    assert found_in(away.encode()) == []
    assert found_below(folder, own={"tiny.toml"}) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "more"),
    [
        (("run", "tiny.toml", "--store", "s3://KEY:{store}@bucket/p"), {}),
        (("run", "tiny.toml", "--set", "store=s3://KEY:Zq10/planted+store7@bucket/p"), {}),
        (("run", "tiny.toml", "--set", "sources.0.path=https://ann:{source}@h/x?token={token}"), {}),
        (("run", "tiny.toml", "--set", 'instruct.data=["s3://K:{source}@b/x.jsonl"]', "--plan"), {}),
        (("run", "tiny.toml", "--set", "tracking.api_key={key}"), {}),
        (("run", "tiny.toml", "--set", "cluster.address=ann:{ray}@head:6379"), {}),
        (("run", "tiny.toml"), {"RAY_ADDRESS": "ray://ann:{ray}@head:10001"}),
        (("run", "tiny.toml", "http://ann:{set}@h"), {}),
        (("run", "http://ann:{set}@h/x.toml"), {}),
        (("run", "broken.toml"), {}),
        (("run", "tiny.toml", "--until", "corpus"), {"PREFECT_API_URL": "http://ann:{prefect}@127.0.0.1:9/api"}),
        (("run", "tiny.toml", "--store", "s3://b/p"), {"AWS_ENDPOINT_URL": "http://ann:{endpoint}@127.0.0.1:9"}),
        (("models",), {"MLFLOW_TRACKING_URI": "http://ann:{mlflow}@127.0.0.1:9"}),
        (("models",), {"MLFLOW_TRACKING_URI": "postgresql://ann:{mlflow}@127.0.0.1:9/runs"}),
        (("models", "x"), {"MLFLOW_REGISTRY_URI": "http://ann:{registry}@127.0.0.1:9"}),
        (("generate", "models:/x", "a"), {"MLFLOW_TRACKING_URI": "mssql+pyodbc://ann:{mlflow}@127.0.0.1/runs"}),
        (("generate", "s3://KEY:{store}@bucket/model", "a"), {}),
        (("import", "https://ann:{source}@h/x?access_token={token}", "--out", "out"), {}),
        (("export", "http://ann:{source}@h/x", "out"), {}),
    ],
)  # fmt: skip
def test_no_error_spells_a_secret_out(words: tuple[str, ...], more: dict[str, str], folder: Path) -> None:
    (folder / "tiny.toml").write_text(TINY.format(**QUOTED, port=9), encoding="utf-8")
    (folder / "broken.toml").write_text(f'a = "http://ann:{QUOTED["set"]}@h" b\n', encoding="utf-8")
    given = {k: v.format(**QUOTED) for k, v in more.items()}
    code, said = run(folder, *(w.format(**QUOTED) for w in words), TMPDIR=str(folder), **given)
    assert code in (0, 1, 2), said
    assert said
    assert found_in(said.encode()) == []
    assert found_below(folder, own={"tiny.toml", "broken.toml"}) == {}
