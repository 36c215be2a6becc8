"""Where a cell of the kill matrix runs: a store up to its stage, an MLflow, the service that dies, who the victim is.

    Place(folder, …)   store with what comes before the stage, MLflow, cache, temporary folder: all its own
      .run(stage)      the command, as a person starts it
      .victims(…)      the processes to be killed, known by descent and never by a name alone

Every process is this file's own, or a child of one, and is known by its id.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from cluster.store.artifact import Artifacts, Manifest
from tests.cluster.tiny_mlflow import template
from tests.s3_server import load_serve
from tests.whole_line import RECIPE, command, environment

ROOT = Path(__file__).parents[1]
BUCKET = "tokenmill"
SETTINGS = ("--set", "cluster.workers=1", "--set", "cluster.max_failures=100")  # a loss in each stage, in one run
WORDS = {
    "driver": "the command's own process",
    "rank": "the Ray worker that does the work",
    "raylet": "Ray's raylet",
    "gcs": "Ray's GCS",
    "prefect": "Prefect's embedded API",
    "mlflow": "MLflow's server",
    "s3": "S3's server",
}
SERVICES = ("mlflow", "s3")  # which are no children of the run
EMBEDDED = ("driver", "prefect")  # whose runs start Prefect's API themselves; others share one, as a site has it
IS: dict[str, Callable[[str, str], bool]] = {
    # Not an idle worker, nor Ray's own agents, nor what stands beside a training's rank or a data stage's tasks.
    "rank": lambda name, words: (
        bool(re.match(r"ray::(?!IDLE|\S*(Agent|Board|Controller|Coordinator|Stats))", words))
        and not re.match(r"ray::\S*(Cleaner|Synchronization)", words)
    ),
    "raylet": lambda name, words: name == "raylet",
    "gcs": lambda name, words: name.startswith("gcs_server"),
    "prefect": lambda name, words: "prefect_server.py" in words,
}


class Place:
    """A folder for one run: its store with what comes before the stage, its MLflow, its services.

    Args:
        whole: where the line was run undisturbed.
        before: manifests of the steps before the stage.
        api: a Prefect server's address for the victims that aren't in EMBEDDED; "": theirs is embedded, too.
    """

    def __init__(self, folder: Path, whole: Path, before: list[Manifest], victim: str, api: str):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tmp").mkdir(parents=True)
        self.folder, self.victim = folder, victim
        for name in ("prefect", "cache"):
            if (whole / name).is_dir():
                shutil.copytree(whole / name, folder / name)
        self.env = environment(folder / "prefect") | {
            "TOKENMILL_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        if api and victim not in EMBEDDED:
            self.env["PREFECT_API_URL"] = api
        self.store = str(folder / "store")
        self.server: Any = None
        if victim == "mlflow":
            sys.path.insert(0, str(ROOT / "tests" / "cluster"))  # as pytest has it
            from mlflow_server import Server

            self.server = Server(folder)
            self.env["MLFLOW_TRACKING_URI"] = self.server.url
        else:
            shutil.copyfile(template(), folder / "mlflow.db")
        if victim == "s3":
            self.server = load_serve().Server(folder / "s3")
            self.env |= self.server.environment
            self.store = f"s3://{BUCKET}/line"
        self.start()
        if victim == "s3":
            self.server.make_bucket(BUCKET)
            self._publish(whole, before)
        else:
            for manifest in before:
                target = folder / "store" / manifest.key
                shutil.copytree(whole / "store" / manifest.key, target, copy_function=os.link)

    @property
    def work(self) -> Path:
        """The folder in which stages at work build their artifacts: the store's, or this machine's beside S3."""
        beside = self.folder / "tmp" / f"tokenmill-{os.getuid()}"
        return (beside if self.victim == "s3" else Path(self.store)) / "work"

    def start(self) -> None:
        if self.server is not None:
            self.server.start()

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            self.server.kill() if self.victim == "mlflow" else self.server.stop()

    def artifacts(self) -> Artifacts:
        os.environ.update({k: v for k, v in self.env.items() if k.startswith("AWS_")})
        return Artifacts(self.store, self.folder / "read")

    def _publish(self, whole: Path, before: list[Manifest]) -> None:
        artifacts = self.artifacts()
        for manifest in before:
            source = self.folder / "copy" / manifest.fingerprint
            shutil.copytree(whole / "store" / manifest.key, source)
            (source / "manifest.json").unlink()
            artifacts.publish(manifest, source)

    def run(self, stage: str) -> subprocess.Popen[str]:
        words = [
            "--store",
            self.store,
            "--set",
            "cluster.workers=1",
            "--set",
            "cluster.max_failures=100",
            "--until",
            stage,
        ]
        return subprocess.Popen(
            command("run", str(RECIPE), *words),
            cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            encoding="utf-8", start_new_session=True,
        )  # fmt: skip

    def victims(self, driver: psutil.Process) -> list[psutil.Process]:
        """The victim's processes, as many as there are now."""
        if self.victim == "driver":
            return [driver]
        if self.victim in SERVICES:
            own = self.server.process if self.victim == "mlflow" else self.server._process
            parent = psutil.Process(own.pid)
            return [parent, *parent.children(recursive=True)]
        found = []
        for child in driver.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if IS[self.victim](child.name(), " ".join(child.cmdline())):
                    found.append(child)
        return found
