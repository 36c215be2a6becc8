"""Two releases of one name at the same time: one version each, and no champion that wasn't compared."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny_mlflow import sqlite_place
from tiny_release import release_step

from cluster.errors import Stopped
from cluster.registry import promote as promotion
from cluster.registry.promote import alone
from cluster.registry.versions import Registry
from cluster.release import release
from cluster.stage import run_step
from cluster.store.artifact import Artifacts
from cluster.tracking.place import Place, connect


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return sqlite_place(tmp_path)


def test_the_same_release_from_two_stores_at_once_is_one_version(place, tmp_path):
    def make(store):
        return run_step(release_step(tracking_uri=place.uri), Artifacts(tmp_path / store)).artifact.summary

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(make, ("a", "b"))
    assert first == second
    assert [v.aliases for v in Registry(place).versions("tiny")] == [("candidate", "champion")]


def test_different_releases_at_once_leave_the_best_as_champion(place, tmp_path):
    def make(bpb):
        step = release_step(bpb=bpb, tracking_uri=place.uri)
        return run_step(step, Artifacts(tmp_path / f"store{bpb}")).artifact.summary

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(make, (3.0, 2.0, 2.5)))
    registry = Registry(place)
    champion = registry.get("models:/tiny@champion")
    assert champion.metrics["bpb"] == 2.0
    versions = sorted(registry.versions("tiny"), key=lambda v: v.version)
    best = float("inf")
    for version in versions:  # each was judged against the best before it
        assert (version.gate == "passed") == (version.metrics["bpb"] < best)
        best = min(best, version.metrics["bpb"])


def test_a_release_waits_for_another_of_the_same_name_only(place):
    waited, stop = [], threading.Event()

    def wait():
        with alone(place, "tiny", stop.is_set):
            waited.append("tiny")

    with ThreadPoolExecutor(1) as pool, alone(place, "tiny"):
        with alone(place, "other"):
            pass
        waiting = pool.submit(wait)
        time.sleep(0.3)
        assert not waited
        stop.set()
        with pytest.raises(Stopped, match="tiny"):
            waiting.result(60)
    stop.clear()
    wait()
    assert waited == ["tiny"]


def other_machines(monkeypatch, module, name, act):
    """Have another machine, which our lock doesn't hold back, `act` once just after the first call of a function."""
    real, done = getattr(module, name), []

    def then(*args, **kw):
        result = real(*args, **kw)
        if not done:
            done.append(True)
            act()
        return result

    monkeypatch.setattr(module, name, then)


def theirs(client, bpb: float, fingerprint: str = "theirs") -> None:
    tags = {"tokenmill.metrics": f'{{"bpb": {bpb}, "reward": 0.5}}', "tokenmill.fingerprint": fingerprint}
    client.create_model_version("tiny", "s3://bucket/x", tags=tags)


@pytest.mark.parametrize(("bpb", "passed"), [(1.0, False), (3.0, True)])
def test_a_champion_that_another_machine_sets_meanwhile_is_the_one_to_beat(place, tmp_path, monkeypatch, bpb, passed):
    client = connect(place.uri)

    def act():
        theirs(client, bpb)
        client.set_registered_model_alias("tiny", "champion", "2")

    other_machines(monkeypatch, release, "judge", act)
    summary = run_step(release_step(bpb=2.0), Artifacts(tmp_path / "store")).artifact.summary
    assert summary["gate"]["passed"] == passed
    ours = Registry(place).get("models:/tiny/1")
    assert ours.tags["tokenmill.gate.against"] == "models:/tiny/2"
    assert Registry(place).get("models:/tiny@champion").version == (1 if passed else 2)
    if passed:
        assert ours.tags["tokenmill.previous_champion"] == "models:/tiny/2"


def test_an_alias_that_is_taken_in_the_same_moment_is_noticed(place, tmp_path, monkeypatch):
    client = connect(place.uri)

    class Racing:
        def set_registered_model_alias(self, *args):
            client.set_registered_model_alias(*args)
            theirs(client, 9.0)
            client.set_registered_model_alias("tiny", "champion", "2")

    real = promotion.promote

    def promote(registry, version, before):
        monkeypatch.setattr(Registry, "client", Racing())
        real(registry, version, before)

    monkeypatch.setattr(release, "promote", promote)
    with pytest.raises(RuntimeError, match=r"Version 2 of tiny took @champion.*Run the same command again"):
        run_step(release_step(bpb=2.0), Artifacts(tmp_path / "store"))


def test_what_two_machines_register_at_once_is_the_first_of_the_two(place, tmp_path, monkeypatch):
    from cluster.stage import fingerprint

    client, step = connect(place.uri), release_step(bpb=2.0)
    real = release.register

    def register(*args, **kw):
        client.create_registered_model("tiny")
        theirs(client, 2.0, fingerprint(step))  # it came after our look, and before our version
        return real(*args, **kw)

    monkeypatch.setattr(release, "register", register)
    summary = run_step(step, Artifacts(tmp_path / "store")).artifact.summary
    assert (summary["version"], summary["aliases"]) == (1, ["candidate", "champion"])
    assert [v.version for v in Registry(place).versions("tiny")] == [1]
