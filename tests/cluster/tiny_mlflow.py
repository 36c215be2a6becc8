"""An MLflow in SQLite for a test, copied from one that is made once: its migrations take seconds."""

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cluster.tracking.place import Place, connect, locate
from cluster.tracking.tracker import Tracker


@functools.cache
def template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tokenmill-test-mlflow-"))
    connect(locate(folder / "store").uri)
    return folder / "mlflow.db"


def sqlite_place(folder: Path) -> Place:
    """The place of `folder`/store, with its database there already."""
    shutil.copyfile(template(), folder / "mlflow.db")
    return locate(folder / "store")


def runs(place: Place, experiment: str) -> dict[str, Any]:
    """Name -> run, of all runs of an experiment; a name twice is an error."""
    client = connect(place.uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    listed = client.search_runs([found.experiment_id])
    named = {r.info.run_name: r for r in listed}
    assert len(named) == len(listed), [r.info.run_name for r in listed]
    return named


def curve(place: Place, run_id: str, metric: str) -> list[tuple[int, float, int]]:
    """(step, value, time) of each point, in MLflow's order."""
    return [(m.step, m.value, m.timestamp) for m in connect(place.uri).get_metric_history(run_id, metric)]


def tracker(place: Place, **more: Any) -> Tracker:
    """A tracker of an experiment, which samples no system."""
    return Tracker(place, "line", system_seconds=None, **more)
