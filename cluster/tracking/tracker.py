"""Tracking: one MLflow run for a run of the line, and a child run for each of its stages.

    tracker = Tracker(locate("store", config.uri), "my experiment")
    tracker.start_line("demo", params, recipe_text, tags)          returns at once: all goes through the outbox
    run = tracker.stage("pretrain", fingerprint, events_path)      …and its events.jsonl is followed
    run.finish("FINISHED", summary)
    tracker.finish("FINISHED")                                     waits for the rest, within a time

A thread delivers the outbox (outbox.py). MLflow away for a minute, or for good, slows nothing down; what is not
delivered by the end, the next run of the line on this machine delivers. Only MlflowClient is used: MLflow's fluent
interface keeps its active run by thread.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cluster.cache import user
from cluster.events import EventLog
from cluster.masking import login_of, masked, taken_out
from cluster.tracking.follow import Follower
from cluster.tracking.machine import Sampler
from cluster.tracking.outbox import TAG, Delivery
from cluster.tracking.place import Place, checked_experiment, locate
from cluster.tracking.sender import POLL_SECONDS, Task, claim, left_behind, remove

STOPPED_SECONDS = 3.0  # that a run which is asked to stop waits for MLflow; what it has not got is kept
GIVE_UP_SECONDS = 8.0  # at the end of a line, for an MLflow that answers with nothing but failures
Status = Literal["FINISHED", "FAILED", "KILLED"]
Experiment = Annotated[str, AfterValidator(checked_experiment)]
_log = logging.getLogger(__name__)


class TrackingConfig(BaseModel):
    """`[tracking]` of a recipe. None of it changes what is made, so none of it is in a fingerprint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str | None = Field(
        None, description="http://… or a database; default: MLFLOW_TRACKING_URI, else SQLite beside the store"
    )
    experiment: Experiment | None = Field(None, min_length=1, max_length=200, description="default: the recipe's name")
    system_metrics: bool = True
    system_seconds: float = Field(10.0, gt=0, description="seconds between two samples of the machine's load")


class Run:
    """A run of MLflow, or what will become one. Methods return at once; the outbox does the rest."""

    def __init__(self, tracker: Tracker, key: str):
        self._tracker, self.key = tracker, key
        self.log = EventLog(tracker.folder / f"{key}.jsonl")  # metrics(), params(), tags(), text(), table(), figure()
        self.open = True
        self._follower: Follower | None = None

    @property
    def run_id(self) -> str:
        """MLflow's id, "" while the run isn't there yet."""
        delivery = self._tracker.delivery
        return delivery.run_id(self.key) if delivery else ""

    def wait_run_id(self, timeout: float = 30.0) -> str:
        """MLflow's id, or "" if MLflow doesn't answer in time."""
        end = time.monotonic() + timeout
        while not self.run_id and time.monotonic() < end:
            self._tracker.wake()
            time.sleep(0.02)
        return self.run_id

    def follow(self, events_path: Path) -> None:
        """Send what is appended to this file, also after it is moved or deleted. Once per run.

        Raises:
            ValueError: the run follows another file already.
        """
        if self._follower is not None:
            if self._follower.source == Path(events_path):
                return
            raise ValueError(f"Run {self.key} follows {self._follower.source} already; start a new stage run.")
        self._follower = Follower(events_path, self._tracker.folder / f"{self.key}.stage")

    def poll(self) -> None:
        if self._follower is not None and self.open:
            self._follower.poll()

    def finish(
        self,
        status: Status = "FINISHED",
        summary: Mapping[str, Any] | None = None,
        events_path: Path | None = None,
    ) -> None:
        """Close the run.

        Args:
            summary: its numbers become metrics, of this run and, as `STEP/NAME`, of the line's.
            events_path: the published events.jsonl, in case that the build folder's was never followed.
        """
        if not self.open:
            return
        if self._follower is not None:
            self._follower.close(events_path)
        elif events_path is not None:
            self.follow(events_path)
        numbers = numbers_of(summary or {})
        if numbers:
            self.log.metrics(0, numbers)
            if self is not self._tracker.line:
                self._tracker._tell_line(self.key.partition("-")[2], numbers)
        self.log.append({"type": "close", "status": status, "end": _now()})
        self.open = False
        self._tracker.wake()


class Tracker:
    """The runs of one run of the line.

    Args:
        place: where MLflow is; see `locate`.
        experiment: MLflow's experiment; made where needed.
        system_seconds: seconds between two samples of the machine's load; None: no system metrics.
    """

    def __init__(self, place: Place | str | Path, experiment: str, system_seconds: float | None = 10.0):
        self.place = place if isinstance(place, Place) else locate(place)
        self.experiment = experiment
        self.line: Run | None = None
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self.folder = self.place.state / f"{stamp}-{os.getpid()}-{secrets.token_hex(3)}"
        self.delivery: Delivery | None = None
        self._lock: Any = None
        self.problem: str | None = None  # why the last delivery failed, in MLflow's words
        self._runs: list[Run] = []
        self._guard = threading.Lock()
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._delivered = threading.Event()
        self._thread = threading.Thread(target=self._deliver, name="tracking", daemon=True)
        self._samples = 0
        self._sampler = Sampler(self._sample, system_seconds) if system_seconds else None

    def start(self) -> None:
        """Begin in the background: import MLflow, make its database, deliver what earlier runs left."""
        with self._guard:
            self._prepare()
            if not self._thread.is_alive() and not self._ending.is_set():
                self._thread.start()
                if self._sampler:
                    self._sampler.start()

    def start_line(
        self,
        name: str,
        params: Mapping[str, Any] | None = None,
        recipe_text: str = "",
        tags: Mapping[str, Any] | None = None,
    ) -> Run:
        """Open the line's run. `params`, nested or flat, become `a.b` = value; the text becomes recipe.toml."""
        self.line = self._open(name, "line", None, {f"{TAG}recipe": name, **(tags or {})})
        if params:
            self.line.log.params(flatten(params))
        if recipe_text:
            self.line.log.text("recipe.toml", recipe_text)
        self.start()
        return self.line

    def stage(
        self,
        step: str,
        fingerprint: str = "",
        events_path: Path | None = None,
        cached: bool = False,
        summary: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        lease: str = "",
        took_over: str = "",
    ) -> Run:
        """Open a stage's run; of a cached one the line's run has the summary, and a link to the run that made it.

        Args:
            lease: the nonce of the lease under which it is made.
            took_over: that of a dead owner whose lease it was; the run of that one is marked KILLED.

        Returns:
            The stage's run; the line's for a cached stage.

        Raises:
            ValueError: before `start_line`.
        """
        if self.line is None:
            raise ValueError("Tracker.stage before Tracker.start_line: a stage's run needs the line's run.")
        if cached:
            self._tell_line(step, numbers_of(summary or {}))
            self.line.log.append({"type": "cached", "step": step, "fingerprint": fingerprint})
            self.wake()
            return self.line
        own = {f"{TAG}stage": step, f"{TAG}fingerprint": fingerprint}
        if lease:
            own[f"{TAG}lease"] = lease
        run = self._open(step, step, self.line.key, {**own, **(tags or {})}, took_over)
        if params:
            run.log.params(flatten(params))
        if events_path is not None:
            run.follow(events_path)
        return run

    def finish(
        self, status: Status = "FINISHED", timeout: float = 30.0, stopping: Callable[[], bool] = lambda: False
    ) -> bool:
        """Close what is open and wait, for `timeout` seconds at most, until all is delivered.

        An MLflow that only fails is given up after `GIVE_UP_SECONDS`, and any `STOPPED_SECONDS` after `stopping` is.

        Returns:
            Whether it is. If not, it stays in `folder`, and the next run of the line delivers it.
        """
        for run in self._runs:
            run.finish(status if run is self.line else "FAILED" if status == "FINISHED" else status)
        if self._sampler:
            self._sampler.stop()
        self._ending.set()
        self._wake.set()
        end = time.monotonic() + timeout
        failing = math.inf  # since when
        while self._thread.is_alive() and (now := time.monotonic()) < end:
            if stopping():
                end = min(end, now + STOPPED_SECONDS)
                stopping = lambda: False  # noqa: E731 (once is enough)
            failing = min(failing, now) if self.problem and not self._delivered.is_set() else math.inf
            if now - failing > GIVE_UP_SECONDS:
                break
            if self._delivered.wait(min(0.2, end - now)):
                self._thread.join(min(0.2, end - now))  # what earlier runs had left
        if self.delivery is None:
            return True
        if not self._delivered.is_set():
            _log.warning("MLflow at %s has not got all yet (%s): %s", self.place.uri, self.problem, self.folder)
            return False  # the folder stays locked: the thread may be in a request as long as the process lives
        remove(self.folder)
        self._lock.close()
        return True

    def undelivered(self) -> str:
        """After a `finish` that did not deliver all: what is missing in MLflow and why, in words."""
        runs, events = self.delivery.undelivered() if self.delivery else (0, 0)
        why = textwrap.shorten(masked(self.problem or "it is slow").split("\n")[0], 160, placeholder=" …")
        return (
            f"MLflow at {self.place.uri} has not got {runs} run{'s' * (runs != 1)} of this line whole: {events:,} "
            f"records ({why}). They are kept in {self.folder}, and the next run on this store delivers them once "
            "MLflow answers."
        )

    def url(self, run: Run | str | None) -> str | None:
        """A link to a run for a person; None while it has no id, or where no server shows it (see place.command)."""
        run_id = run.run_id if isinstance(run, Run) else run
        if not run_id or not self.place.is_server or not self.delivery or not self.delivery.experiment:
            return None
        return f"{login_of(taken_out(self.place.uri))[0]}/#/experiments/{self.delivery.experiment}/runs/{run_id}"

    def wake(self) -> None:
        """Have the sender look now."""
        self._wake.set()

    def _prepare(self) -> Delivery:
        """The line's folder, made when there is something to put into it."""
        if self.delivery is None:
            self.folder.mkdir(parents=True)
            self._lock = claim(self.folder, new=True)
            root = self.place.artifact_root
            line = {"uri": self.place.uri, "experiment": self.experiment, "artifact_root": root}
            (self.folder / "line.json").write_text(json.dumps(line), encoding="utf-8")
            self.delivery = Delivery(self.folder, live=True)
        return self.delivery

    # -- inside ----------------------------------------------------------------------------------------------

    def _tell_line(self, step: str, numbers: Mapping[str, float]) -> None:
        if self.line is not None and numbers:
            self.line.log.metrics(0, {f"{step}/{k}": v for k, v in numbers.items()})

    def _open(
        self,
        name: str,
        label: str,
        parent: str | None,
        tags: Mapping[str, Any],
        took_over: str = "",
    ) -> Run:
        safe = "".join(c if c.isalnum() or c in "_-." else "_" for c in label)
        with self._guard:
            self._prepare()
            run = Run(self, f"{len(self._runs):03d}-{safe}")
            self._runs.append(run)
        run.log.append(
            {
                "type": "open",
                "name": name,
                "parent": parent,
                "start": _now(),
                "tags": {"mlflow.user": user(), "mlflow.source.name": "tokenmill", **tags},
                "took_over": took_over,
            }
        )
        self.wake()
        return run

    def _sample(self, values: dict[str, float]) -> None:
        self._samples += 1
        for run in list(self._runs):
            if run.open:
                run.log.metrics(self._samples, values)

    def _deliver(self) -> None:
        """The sender's thread."""
        delivery = self._prepare()
        own = Task(delivery)
        others: list[Task] | None = None
        while True:
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()
            ending = self._ending.is_set()  # asked before the look at the files: what comes later is seen next time
            for run in list(self._runs):
                run.poll()
            own.attempt(hurry=ending)
            self.problem = own.problem
            if others is None and not own.problem:  # MLflow is there: now for what earlier runs left
                others = [Task(d, lock) for d, lock in left_behind(self.place.state, self.folder)]
            for task in others or ():
                task.attempt()
            if ending and own.done and delivery.finished():
                self._delivered.set()
                break
            if ending and not self.folder.exists():
                break  # another process has delivered it
        for task in others or ():
            task.attempt(hurry=True)
            task.release()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}, "c": [{"d": 2}, 3]} -> {"a.b": 1, "c.0.d": 2, "c.1": 3}; lists of plain values stay one."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, (list, tuple)) and any(isinstance(v, (Mapping, list, tuple)) for v in value):
            value = {str(i): v for i, v in enumerate(value)}
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def numbers_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a nested summary, as `a/b` -> value."""
    return {
        k.replace(".", "/") if "." in k and k not in summary else k: float(v)
        for k, v in flatten(summary).items()
        if isinstance(v, (int, float)) and not isinstance(v, bool)
    }


def _now() -> int:
    return time.time_ns() // 1_000_000


__all__ = ["Place", "Run", "Tracker", "TrackingConfig", "flatten", "locate", "numbers_of"]
