"""The outbox against a real MLflow server that dies in the middle of a run and comes back."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow_server import ENV, Server
from tiny_mlflow import curve, runs

from cluster.events import EventLog
from cluster.tracking.place import Place
from cluster.tracking.tracker import Tracker

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    made = Server(tmp_path)
    made.start()
    yield made
    made.kill()


def test_a_server_that_dies_and_comes_back_gets_every_point_once(server, tmp_path):
    place = Place(server.url, None, tmp_path / "state")
    track = Tracker(place, "line", system_seconds=None)
    track.start_line("demo", {"lr": 1}, "name = 'demo'")
    log = EventLog(tmp_path / "events.jsonl")
    stage = track.stage("pretrain", "f1", log.path)
    spent = 0.0
    for step in range(600):
        if step == 200:
            assert stage.wait_run_id(60)
            assert track.url(stage).startswith(f"{server.url}/#/experiments/")
            time.sleep(1)
            server.kill()
        if step == 400:
            server.start()
        begun = time.perf_counter()
        log.metrics(step, {"loss": float(step), "lr": 0.1}, time_ms=1_700_000_000_000 + step)
        if step in (100, 300, 500):
            log.table("samples", ["step"], [[step]])
        spent += time.perf_counter() - begun
        time.sleep(0.005)
    stage.finish("FINISHED", {"loss": 599.0})
    assert track.finish(timeout=240), track.problem
    assert spent < 60  # the work never waits for MLflow: 0.1 s for each of what it says
    found = runs(place, "line")
    assert {r.info.status for r in found.values()} == {"FINISHED"}
    expected = [(s, float(s), 1_700_000_000_000 + s) for s in range(600)]
    assert sorted(curve(place, stage.run_id, "loss")) == expected
    from cluster.tracking.place import connect

    table = Path(connect(place.uri).download_artifacts(stage.run_id, "samples.json")).read_text(encoding="utf-8")
    assert table.replace(" ", "").replace("\n", "") == '{"columns":["step"],"data":[[100],[300],[500]]}'


def test_a_release_registers_through_a_server(server, tmp_path, monkeypatch):
    from tiny_release import release_step

    from cluster.serve.generator import Generator
    from cluster.stage import run_step
    from cluster.store.artifact import Artifacts
    from cluster.tracking.place import locate

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "cache"))
    outcome = run_step(release_step(bpb=2.0), Artifacts(tmp_path / "store"))
    assert outcome.artifact.summary["aliases"] == ["candidate", "champion"]
    assert run_step(release_step(bpb=2.0), Artifacts(tmp_path / "store")).cached
    generator = Generator.load("models:/tiny@champion", locate(tmp_path / "store"))
    assert isinstance(generator.complete("The", max_new_tokens=4, temperature=0), str)


def test_two_first_users_of_one_database_make_it_once(tmp_path):
    """MLflow's migrations race when two processes start them."""
    code = (
        "import sys; from cluster.tracking.place import connect;"
        "print(len(connect('sqlite:///' + sys.argv[1]).search_experiments()))"
    )
    command = [sys.executable, "-c", code, tmp_path / "new" / "mlflow.db"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    outputs = [p.communicate(timeout=180)[0].decode() for p in processes]
    assert outputs == ["1\n"] * 2
