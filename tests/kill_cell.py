"""One cell of the kill matrix: something of a stage at work is killed, ended or held, and the command is run again.

    store before the stage ─▶ run --until STAGE ─▶ at work: signal to VICTIM ─▶ its end ─▶ the same command ─▶ compare

Every process is this file's own, or a child of one, and is known by its id.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cluster.cache import user
from cluster.store.artifact import Artifacts, Manifest
from tests.cluster.tiny_mlflow import template
from tests.s3_server import load_serve
from tests.whole_line import RECIPE, command, environment

ROOT = Path(__file__).parents[1]
BUCKET = "tokenmill"
HELD_SECONDS = 30.0
LIMIT = 240.0  # seconds for one run of the command
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "STOP": signal.SIGSTOP}
TRAININGS = ("pretrain", "instruct", "rlhf")
WORDS = {
    "driver": "the command's own process",
    "rank": "the Ray worker that does the work",
    "raylet": "Ray's raylet",
    "gcs": "Ray's GCS",
    "prefect": "Prefect's embedded API",
    "mlflow": "MLflow's server",
    "s3": "S3's server",
}
# What two undisturbed runs differ in: times, rates, and how the work was come by.
VARYING = re.compile(r"^(t|tokens_per_second|mfu|resumed_from|seconds|created|wall_seconds|.*_seconds)$")


@dataclass
class Cell:
    """What came of one."""

    stage: str
    victim: str
    signal: str
    said: str = ""
    code: int | None = None  # of the disturbed run
    seconds: float = 0.0  # of the disturbed run and of the same command after it
    lost: float = 0.0  # beyond an undisturbed one
    equal: bool | None = None  # None: there was no such process
    differs: list[str] = field(default_factory=list)
    again: str = ""  # what the same command said, where it went wrong
    left: list[str] = field(default_factory=list)  # processes that outlived the disturbed run

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.victim}-{self.signal}"

    def save(self, folder: Path) -> None:
        (folder / f"{self.name}.json").write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


class Place:
    """A folder for one run: its store with what comes before the stage, its MLflow, its services."""

    def __init__(self, folder: Path, whole: Path, before: list[Manifest], victim: str):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.victim = folder, victim
        self.env = environment(whole / "prefect") | {"TOKENMILL_CACHE": str(whole / "cache"), "OMP_NUM_THREADS": "1"}
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
        words = ["--store", self.store, "--set", "cluster.workers=1", "--until", stage]
        return subprocess.Popen(
            command("run", str(RECIPE), *words),
            cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            encoding="utf-8", start_new_session=True,
        )  # fmt: skip

    def processes(self, driver: psutil.Process) -> list[psutil.Process]:
        """The victim's processes, as many as there are now."""
        if self.victim == "driver":
            return [driver]
        if self.victim in ("mlflow", "s3"):
            own = self.server.process if self.victim == "mlflow" else self.server._process
            parent = psutil.Process(own.pid)
            return [parent, *parent.children(recursive=True)]
        found = []
        for child in driver.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                words = " ".join(child.cmdline())
                if IS[self.victim](child.name(), words):
                    found.append(child)
        return found


IS: dict[str, Callable[[str, str], bool]] = {
    # Not an idle worker, nor Ray's own agents, nor what stands beside a training's rank.
    "rank": lambda name, words: bool(re.match(r"ray::(?!IDLE|\S*(Agent|Board|Controller))", words)),
    "raylet": lambda name, words: name == "raylet",
    "gcs": lambda name, words: name.startswith("gcs_server"),
    "prefect": lambda name, words: "prefect_server.py" in words,
}


def at_work(place: Place, manifest: Manifest, process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The victim's processes once the stage is really at work; none if it ended before there were any."""
    work = (
        Path(place.store) / "work" if place.victim != "s3" else Path(tempfile.gettempdir()) / f"tokenmill-{user()}/work"
    )
    folder, driver = work / manifest.fingerprint, psutil.Process(process.pid)
    end = time.monotonic() + LIMIT
    while process.poll() is None and time.monotonic() < end:
        events = [*folder.glob("out-*/events.jsonl"), *folder.glob("checkpoints/*/manifest.json")]
        begun = any(folder.glob("out-*")) if manifest.name not in TRAININGS else any(e.stat().st_size for e in events)
        if begun:
            with contextlib.suppress(psutil.Error):
                if found := place.processes(driver):
                    return found
        time.sleep(0.01)
    return []


def run_cell(cell: Cell, folder: Path, whole: Path, manifests: list[Manifest], undisturbed: float) -> Cell:
    """Fill in a cell.

    Args:
        whole: where the line was run undisturbed.
        manifests: of all steps, in their order.
        undisturbed: seconds of this stage's run from the same store with nothing in its way.
    """
    number = [m.name for m in manifests].index(cell.stage)
    place = Place(folder, whole, manifests[:number], cell.victim)
    try:
        begun = time.monotonic()
        process = place.run(cell.stage)
        victims = at_work(place, manifests[number], process)
        family = [*_tree(process), *victims]
        if victims:
            _signal(victims, cell.signal)
            if cell.signal == "STOP":
                _hold(victims, process)
        output = _end(process)
        seconds = time.monotonic() - begun
        cell.code, cell.said = process.returncode, sentence(output, process.returncode)
        (folder / "screen.txt").write_text(output, encoding="utf-8")
        _, alive = psutil.wait_procs([p for p in family if p.pid != process.pid and p not in victims], timeout=20)
        cell.left = [_name(p) for p in alive]
        for one in alive:
            with contextlib.suppress(psutil.Error):
                one.kill()
        if not victims:
            cell.said, cell.equal = f"Nothing: {WORDS[cell.victim]} has no process in this stage.", None
            return cell
        if cell.victim in ("mlflow", "s3") and cell.signal != "STOP":
            place.stop()
            place.start()
        begun = time.monotonic()
        second = place.run(cell.stage)
        output = _end(second)
        cell.seconds = seconds + (time.monotonic() - begun if cell.code else 0.0)
        cell.lost = cell.seconds - undisturbed
        if second.returncode:
            cell.again = sentence(output, second.returncode)
            (folder / "again.txt").write_text(output, encoding="utf-8")
        cell.differs = differences(place, whole, manifests[: number + 1])
        cell.equal = not cell.differs and not second.returncode
    finally:
        place.stop()
    return cell


def _signal(processes: list[psutil.Process], name: str) -> None:
    for one in processes:
        with contextlib.suppress(psutil.Error):
            one.send_signal(SIGNALS[name])


def _hold(processes: list[psutil.Process], run: subprocess.Popen[str]) -> None:
    """For so many seconds, or until the run has ended without them."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.wait(HELD_SECONDS)
    for one in processes:
        with contextlib.suppress(psutil.Error):
            one.send_signal(signal.SIGCONT)


def _tree(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []


def _end(process: subprocess.Popen[str]) -> str:
    """What the run says until its end; one that doesn't end is killed with its children."""
    try:
        return process.communicate(timeout=LIMIT)[0]
    except subprocess.TimeoutExpired:
        for one in [*_tree(process), process]:
            with contextlib.suppress(psutil.Error):
                one.kill()
        return process.communicate()[0] + f"\nError: it did not end within {LIMIT:.0f} s."


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.name()} {process.pid}"
    return str(process.pid)


def sentence(output: str, code: int) -> str:
    """What the screen said of it, in one sentence; "" if it said nothing."""
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    if code < 0:
        return f"Nothing more: the process was gone ({signal.Signals(-code).name})."
    telling = ("Error", "Stopped", "Prefect", "MLflow at", "Traceback", "Fatal", "✗")
    found = [line for line in lines if line.startswith(telling)] if code else []
    found = found or [line for line in lines if "has not been shown" in line or "has not got" in line]
    found = found or [line for line in lines if "again" in line or "retried" in line or "restarted" in line]
    if not found:
        return "It went on to its end, and said nothing of it." if not code else ""
    text = next((line for line in found if line.startswith(("Error", "Stopped"))), found[-1])
    return text if len(text) <= 240 else text[:239] + "…"


# -- equality ----------------------------------------------------------------------------------------------------


def differences(place: Place, whole: Path, manifests: list[Manifest]) -> list[str]:
    """What the artifacts of these steps have that the undisturbed run's have not, and what is missing."""
    found: list[str] = []
    artifacts = place.artifacts()
    for manifest in manifests:
        artifact = artifacts.find(manifest.kind, manifest.fingerprint)
        if artifact is None:
            found.append(f"{manifest.name}: there is none")
            continue
        folder, theirs = artifact.path(), whole / "store" / manifest.key
        mine = artifact.manifest.files
        found += [f"{manifest.name}/{name}: in one only" for name in set(mine) ^ set(manifest.files)]
        for name in set(mine) & set(manifest.files):
            if mine[name].sha256 != manifest.files[name].sha256 and content(folder / name) != content(theirs / name):
                found.append(f"{manifest.name}/{name}")
        if varied(artifact.summary) != varied(manifest.summary):
            found.append(f"{manifest.name}: its summary")
    return sorted(found)


def content(path: Path) -> str:
    """A file's checksum; of JSON without what varies from run to run."""
    if path.suffix not in (".json", ".jsonl"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    text = path.read_text(encoding="utf-8")
    values = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    return json.dumps(varied(values), sort_keys=True)


def varied(value: Any) -> Any:
    """JSON without the keys that vary."""
    if isinstance(value, dict):
        return {k: varied(v) for k, v in value.items() if not VARYING.match(k)}
    return [varied(v) for v in value] if isinstance(value, list) else value


@contextlib.contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Whether this process alone works on a cell now, so that several may fill one matrix."""
    import fcntl

    with (folder / f"{name}.lock").open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
