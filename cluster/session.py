"""One Ray for the whole line: started on this machine, or joined at an address.

With nothing configured, `Session.ensure()` starts Ray here with what the machine has. `[cluster] address` or
`RAY_ADDRESS` joins a cluster, and inside `ray job submit` the job's own. Ray is started once and kept until `close()`;
a line whose stages are all cached never starts it.

A Ray started here listens on loopback only and with a token of its own for each run (ray_local.py). A cluster's own
authentication settings are left as they are.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field

from cluster import ray_local
from cluster.errors import UserError
from cluster.ray_address import check_address, parse_address
from cluster.ray_watch import STUCK_SECONDS, SYSTEM_CONFIG, HeadWatch, RayLost, Watch, ends_within, lost_workers

# Read by Ray when it is imported or started. `setdefault`: what the user has set wins.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` it would reinstall the project in every worker
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


_log = logging.getLogger(__name__)


class ClusterConfig(BaseModel):
    """Where the work runs. None of it changes what is made, so none of it is in a fingerprint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = Field(None, description="a Ray cluster's address; default: RAY_ADDRESS, else a local Ray")
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="data-parallel training workers; auto: one a GPU, or one for the machine's CPU; "
        "0: train in this process, to debug it or to spare a tiny run the workers' start",
    )
    cpus_per_worker: float | None = Field(None, gt=0, description="default: the cluster's CPUs over its workers")
    use_gpu: bool | Literal["auto"] = "auto"
    interface: str | None = Field(
        None,
        min_length=1,
        description="the network interface (eth0) on which the workers of a training meet; default: that of Ray's own "
        "address, which is loopback for a local Ray",
    )
    max_failures: int = Field(
        2, ge=0, description="restarts of a training whose worker or node died, and of a stage whose local Ray did"
    )
    object_store_mb: int = Field(512, ge=80, description="a local Ray's shared memory for objects")


class Session:
    """A Ray that is started once and shared by every stage.

    Args:
        config: the recipe's `[cluster]`.
    """

    def __init__(self, config: ClusterConfig | None = None):
        self.config = config or ClusterConfig.model_validate({})
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ready, self._closing = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._started = False
        self._ours = False  # this session called ray.init, so it calls ray.shutdown
        self._watch: Watch | None = None
        self._losses, self._burial = 0, threading.Lock()
        self._unsaid = ""  # what became of a Ray that is put away, until it is said
        self._told: set[str] = set()  # Ray's ids of workers that `lost_workers` has given

    def start(self) -> None:
        """Begin to start Ray, unless it is up or under way; one that failed is tried again. Returns at once.

        The thread that starts it lives until `close`: Linux delivers "your parent died", by which Ray's processes end
        with us, when the *thread* that forked them ends.
        """
        with self._lock:
            if self._ready.is_set() and self._error is None and self._started:
                return
            if self._thread is not None and not self._ready.is_set():
                return
            self._error = None
            self._ready, self._closing = threading.Event(), threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._ready, self._closing), daemon=True)
            self._thread.start()

    def ensure(
        self, stopping: Callable[[], bool] = lambda: False, note: Callable[[str], None] = lambda text: None
    ) -> Session | None:
        """Ray is up when this returns; None if `stopping` turned true before. Threads may call it at once.

        Args:
            note: hears of a Ray that was lost while nothing ran on it, whose place another one takes.
        Raises:
            UserError: at the address is no cluster that can be joined; nothing was lost, so no retry mends it.
            ConnectionError: Ray doesn't start here; the next call tries again.
        """
        watch = self._watch
        if watch and watch.settled():
            self._bury(watch)
        if self._unsaid:
            note(f"{self._unsaid} Another Ray takes its place.")
            self._unsaid = ""
        self.start()
        while not self._ready.wait(0.1):
            if stopping():
                return None
        error = self._error
        if error is None:
            return self
        if isinstance(error, UserError):
            raise error
        if self.address:
            raise UserError(f"{self.named} is {self.address!r}, and Ray can't be joined there: {error}") from error
        raise ConnectionError(f"Ray did not start on this machine: {error}") from error

    @contextlib.contextmanager
    def during(self) -> Iterator[None]:
        """What uses Ray runs within this. After a loss the next `ensure` starts another Ray.

        Raises:
            RayLost: Ray has ended under it; of a cluster that was joined, nobody here starts another.
        """
        watch = self._watch
        if watch is None:
            yield
            return
        try:
            with watch.during(self._watches_own and self._losses < self.config.max_failures):
                yield
        except RayLost:
            self._losses += 1
            self._bury(watch)
            self._unsaid = ""
            raise

    def lost_workers(self) -> list[str]:
        """The workers that have died since this was asked last, in words; Ray has given their tasks to others."""
        try:
            found = lost_workers()
        except Exception:  # a table of Ray's own, which nothing depends on
            _log.warning("whether a worker of Ray was lost can't be known", exc_info=True)
            return []
        new = [words for worker, words in found.items() if worker not in self._told]
        self._told |= set(found)
        return new

    @property
    def _watches_own(self) -> bool:
        """Whether the Ray that is watched was started here."""
        return not isinstance(self._watch, HeadWatch)

    @property
    def address(self) -> str | None:
        """The cluster to join, or None to start Ray here."""
        given = self.config.address or os.environ.get("RAY_ADDRESS") or None
        return None if given == "local" else given

    @property
    def named(self) -> str:
        """Where the address comes from, for messages."""
        return "[cluster] address" if self.config.address else "RAY_ADDRESS"

    def check(self) -> None:
        """Before anything starts: whether the address that is given is one where a cluster answers.

        Raises:
            UserError: it isn't.
        """
        if self.address and not _in_job():
            check_address(self.address, self.named)

    def workers(self) -> tuple[int, bool, float]:
        """(training workers, whether each gets a GPU, CPUs for each), from what the cluster has now.

        No worker means that this process trains.
        """
        import ray

        self.ensure()
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1.0)
        use_gpu = gpus > 0 if self.config.use_gpu == "auto" else self.config.use_gpu
        if use_gpu and not gpus:
            raise UserError('[cluster] use_gpu = true, but Ray sees no GPU here: set use_gpu = "auto" or false.')
        count = self.config.workers
        if count == "auto":
            count = gpus if use_gpu else 1
        if use_gpu and count > gpus:
            raise UserError(f"[cluster] workers = {count}, but the cluster has {gpus} GPUs: one worker needs one GPU.")
        if count == 0:
            return 0, use_gpu, self.config.cpus_per_worker or float(os.cpu_count() or 1)
        share = self.config.cpus_per_worker or min(max(cpus // count, 1.0), cpus / count)
        if share * count > cpus + 1e-6:
            raise UserError(
                f"[cluster] {count} workers x {share:g} CPUs need {share * count:g} CPUs and the cluster has "
                f"{cpus:g}: lower workers or cpus_per_worker."
            )
        return count, use_gpu, share

    def close(self) -> None:
        """Stop the Ray that this session started; leave a cluster that it joined."""
        if self._watch and self._watch.problem():  # that nobody has met
            self._bury(self._watch)
            return
        if self._watch:
            self._watch.stop()
            self._watch = None
        if self._ours:
            import ray

            ray.shutdown()
            self._ours = False
        self._started = False
        self._closing.set()
        if self._thread is not None:
            self._thread.join(1)
            self._thread = None

    def _bury(self, watch: Watch) -> None:
        """End what is left of a Ray that has lost a part; once, whoever comes first."""
        from ray._private import worker

        with self._burial:
            if self._watch is watch:
                self._unsaid = watch.problem()
                watch.stop()
                with ends_within(STUCK_SECONDS, watch.problem()):
                    if self._watches_own:
                        watch.see_children()
                        node = worker._global_node
                        node.kill_all_processes(check_alive=False, allow_graceful=False)  # type: ignore[union-attr]
                        watch.end_children()
                    self._watch = None
                    self.close()

    def _run(self, ready: threading.Event, closing: threading.Event) -> None:
        before = {child.pid for child in psutil.Process().children()}
        try:
            self._start()
            self._started = True
        except (Exception, SystemExit) as error:  # Ray's start-up may call sys.exit
            self._error = error
            ray_local.end_started(before)  # it leaves what it has begun with, and the next try begins anew
        ready.set()
        closing.wait()

    def _start(self) -> None:
        for key, value in QUIET.items():
            os.environ.setdefault(key, value)
        in_job = _in_job()
        self.check()
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address or in_job:
            import ray

            if ray.is_initialized():
                return
            if not in_job:  # a job's working directory is already everywhere; otherwise send the code along
                options["runtime_env"] = {"py_modules": _own_packages()}
            ray.init(address=self.address or "auto", **options)
            self._watch = watch = HeadWatch(*_head(self.address), idle=lambda: self._bury(watch))
        else:
            with ray_local.starting():
                import ray

                if ray.is_initialized():
                    return
                folder = ray_local.folder()
                ray.init(
                    address="local",  # also where another Ray runs on this machine: nobody said to join it
                    num_cpus=os.cpu_count() or 1,
                    include_dashboard=False,
                    object_store_memory=self.config.object_store_mb * 2**20,
                    _node_ip_address=ray_local.LOOPBACK,
                    _temp_dir=str(folder) if folder else None,
                    _system_config=SYSTEM_CONFIG,
                    **options,
                )
                from ray._private import worker

                started = worker._global_node.all_processes  # type: ignore[union-attr]
                processes = {name: found[0].process for name, found in started.items() if found}
                self._watch = watch = Watch(processes, lambda: self._bury(watch), _head(None))
        self._ours = True
        for name in ("ray", "ray.data", "ray.train"):
            logging.getLogger(name).setLevel(logging.ERROR)


def _head(address: str | None) -> tuple[str, int]:
    """(host, port) by which this process reaches its cluster's head."""
    import ray

    if address and address.startswith("ray://"):
        return parse_address(address, "the address")
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return host.strip("[]"), int(port)


def _in_job() -> bool:
    """Whether this process is a job's, which Ray itself has told where it is."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _own_packages() -> list[str]:
    """The folders of tokenmill's packages, sent to a cluster that is joined from outside."""
    specs = (importlib.util.find_spec(name) for name in ("flows", "cluster", "model"))
    return [next(iter(spec.submodule_search_locations or [])) for spec in specs if spec]
