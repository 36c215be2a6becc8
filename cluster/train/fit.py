"""A function on N Ray Train workers, with its events, its checkpoints and its stop signal.

    driver                         Ray Train worker (rank r of N)
    fit(ws, task, payload)   ──▶   task(Worker, payload) -> result of rank 0
      poll the board         ◀──   worker.post(event): rank 0, in batches
      ws.stopping()          ──▶   worker.stopping(): asked once a step, agreed among ranks by the trainer
      ws.checkpoints         ◀──   worker.save(step, write): rank 0, straight to the store

Ray Train places the workers, wires torch.distributed and restarts them when one dies; nothing of Ray is in a
training step. A checkpoint carries the events so far, so what a killed run leaves is one curve, not two.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import Stopped, UserError
from cluster.stage import Workspace

POLL_SECONDS = 0.5
EVENTS = "events.jsonl"

# glibc maps what is larger than 32 MB afresh each time, and touching new pages costs more than most elementwise work on
# them; training frees and asks for the same sizes at every step. One arena, for a thread's own ends at 64 MB.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_ARENA_MAX": "1"}


class Board:
    """What rank 0 tells the driver, and the driver's wish to stop. A Ray actor, so any node reaches it."""

    def __init__(self) -> None:
        self.lines: list[dict] = []
        self.stop = False

    def post(self, events: list[dict]) -> bool:
        self.lines += events
        return self.stop

    def drain(self, stop: bool) -> list[dict]:
        self.stop = self.stop or stop
        lines, self.lines = self.lines, []
        return lines


@dataclass
class Worker:
    """One rank's view of the run: who it is, and its way to the board and to the store."""

    rank: int
    world_size: int
    local_rank: int
    store_url: str
    fingerprint: str
    board: Any
    events: list[dict] = field(default_factory=list)  # all since step 0, also those of the run before a kill
    _unsent: list[dict] = field(default_factory=list)
    _asked: Any = None
    _stop: bool = False
    _sent_at: float = 0.0

    @property
    def device(self) -> str:
        import torch

        return f"cuda:{self.local_rank}" if torch.cuda.is_available() else "cpu"

    def post(self, event: dict) -> None:
        """Add an event (see cluster.events for the forms) to the curve. Rank 0 sends; the others keep quiet."""
        if self.rank == 0:
            event = {"t": int(time.time() * 1000), **event}
            self.events.append(event)
            self._unsent.append(event)
            if time.monotonic() - self._sent_at > POLL_SECONDS:
                self.flush()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.post({"type": "metrics", "step": step, "values": values})

    def tell(self, message: dict) -> None:
        """A message for the driver alone, which has it when this returns."""
        import ray

        if self.rank == 0:
            self._unsent.append(message)
            self.flush()
            ray.get(self._asked)

    def flush(self) -> None:
        if self.rank == 0:
            self._asked, self._unsent = self.board.post.remote(self._unsent), []
            self._sent_at = time.monotonic()

    def stopping(self) -> bool:
        """Whether the driver wants a stop, as last heard; never waits. Other ranks follow rank 0 in the trainer."""
        import ray

        if self.rank == 0:
            if time.monotonic() - self._sent_at > POLL_SECONDS:
                self.flush()
            if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
                self._stop, self._asked = ray.get(self._asked), None
        return self._stop

    def checkpoints(self) -> Any:
        from cluster.store.artifact import Artifacts

        return Artifacts(self.store_url).checkpoints(self.fingerprint)

    def resume(self) -> tuple[int, Path] | None:
        """The newest whole checkpoint, the same one on every rank, and this curve's events up to it."""
        import torch.distributed as dist

        found = self.checkpoints().latest()
        if self.world_size > 1:  # a rank that sees a newer one than the others would train alone
            steps: list[Any] = [None] * self.world_size
            dist.all_gather_object(steps, found[0] if found else None)
            if len(set(steps)) > 1:
                raise RuntimeError(f"The workers see different newest checkpoints, steps {steps}: is the store shared?")
        if found and self.rank == 0 and not self.events:
            self.events = _read(found[1] / EVENTS)
        return found

    def recall(self, step: int) -> dict[str, float]:
        """What rank 0 has already put on the curve at `step`; nothing on the other ranks."""
        points = [e["values"] for e in self.events if e["type"] == "metrics" and e["step"] == step]
        return {name: value for point in points for name, value in point.items()}

    def mean(self, sums: dict[str, tuple[float, int]]) -> dict[str, float]:
        """Means over all ranks from each rank's (sum, count) of the same names. Every rank must call it."""
        import torch
        import torch.distributed as dist

        table = torch.tensor(list(sums.values()), dtype=torch.float64)
        if self.world_size > 1:
            table = table.to(self.device if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(table)
        return {name: total / max(count, 1.0) for name, (total, count) in zip(sums, table.tolist(), strict=True)}

    def save(self, step: int, write: Callable[[Path], None], keep: int = 2) -> None:
        """Publish what `write(folder)` writes as the checkpoint of `step`. Rank 0 only; the others return."""
        if self.rank != 0:
            return
        folder = Path(tempfile.mkdtemp(prefix="tokenmill-checkpoint-"))
        try:
            write(folder)
            (folder / EVENTS).write_text("".join(json.dumps(e) + "\n" for e in self.events))
            checkpoints = self.checkpoints()
            checkpoints.save(step, folder)
            checkpoints.prune(keep)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def fit(
    ws: Workspace,
    task: Callable[[Worker, dict], dict],
    payload: dict,
    on_event: Callable[[dict], None] | None = None,
) -> dict:
    """Run `task(worker, payload)` on the session's training workers and return what rank 0 returned.

    Args:
        ws: the stage's workspace; its events.jsonl is the checkpoint's curve, then what the workers post.
        task: an importable function; its return value must be plain JSON. A `{"stopped": step}` in it means
            that it ended early, with a checkpoint, because the driver asked.
        payload: its second argument; configs and artifacts.
        on_event: called in the driver for each event, for progress.

    Raises:
        Stopped: the run was asked to stop; the checkpoint is in the store.
        RuntimeError: the task failed on a worker, more often than `[cluster] max_failures` allows for a death.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    session = ws.session
    workers, use_gpu, cpus = session.workers()
    board: Any = ray.remote(num_cpus=0)(Board).remote()
    log = ws.out / EVENTS
    found = ws.checkpoints.latest()
    log.write_bytes((found[1] / EVENTS).read_bytes() if found else b"")

    scratch = Path(tempfile.mkdtemp(prefix="tokenmill-train-"))
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "task": task,
            "payload": payload,
            "board": board,
            "store_url": ws.artifacts.store.url,
            "fingerprint": ws.fingerprint,
            "threads": max(1, int(cpus)),
        },
        scaling_config=ScalingConfig(  # none: Ray Train's local mode, in this process
            num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus} if workers else None
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name=ws.fingerprint,
            storage_path=str(scratch),  # holds no checkpoint: those go to our store
            failure_config=FailureConfig(max_failures=session.config.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": ALLOCATOR},
        ),
    )
    failure: list[BaseException] = []

    def run() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)

    # In a thread: in the main one Ray would take SIGINT for itself and abort without a checkpoint.
    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    result: dict | None = None
    with log.open("a") as file:
        while True:
            running = thread.is_alive()  # asked before the last drain, so that nothing is left behind
            for event in ray.get(board.drain.remote(ws.stopping())):
                if event["type"] == "result":
                    result = event["value"]
                    continue
                if event["type"] == "error":
                    failure.insert(0, UserError(event["value"]))
                    continue
                if event["type"] == "start":  # workers were (re)started: the curve goes on from their checkpoint
                    _hold_lines(log, event["events"], ws)
                    file.seek(0, 2)
                    continue
                file.write(json.dumps(event) + "\n")
                if on_event:
                    on_event(event)
            file.flush()
            if not running:
                break
            thread.join(POLL_SECONDS)
    ray.kill(board)
    shutil.rmtree(scratch, ignore_errors=True)
    if failure:
        raise _plain(failure[0])
    if result is None:
        raise RuntimeError(f"{ws.step}: the training workers ended without a result.")
    if "stopped" in result:
        raise Stopped(f"{ws.step} stopped at step {result['stopped']}, with a checkpoint.")
    result["devices"] = max(1, workers)
    result["device"] = "gpu" if use_gpu else "cpu"
    return result


def _work(config: dict) -> None:
    """The function that Ray Train calls on each worker."""
    import torch
    from ray import train

    context = train.get_context()
    torch.set_num_threads(config["threads"])
    worker = Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        store_url=config["store_url"],
        fingerprint=config["fingerprint"],
        board=config["board"],
    )
    worker.resume()
    worker.tell({"type": "start", "events": len(worker.events)})
    try:
        result = config["task"](worker, config["payload"])
    except UserError as error:  # the user's to mend: restarting the workers would only repeat it
        if worker.rank == 0:
            worker.tell({"type": "error", "value": str(error)})
        return
    worker.tell({"type": "result", "value": result})


def _hold_lines(path: Path, count: int, ws: Workspace) -> None:
    """Make the curve's file hold the `count` events of the checkpoint that the workers go on from, no more and no less.

    More where steps after it are done again, less where a worker died before it had sent all that its checkpoint has.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    if len(lines) > count:
        os.truncate(path, sum(map(len, lines[:count])))
    elif len(lines) < count:
        found = ws.checkpoints.latest()
        assert found is not None
        saved = (found[1] / EVENTS).read_bytes().splitlines(keepends=True)  # a later one begins with the same events
        with path.open("ab") as file:
            file.writelines(saved[len(lines) : count])


def _plain(error: BaseException) -> BaseException:
    """The worker's own error out of Ray Train's wrapping, where it is one that the user can act on."""
    failures = getattr(error, "worker_failures", None) or {}
    for cause in failures.values():
        inner = getattr(cause, "cause", None) or cause
        if isinstance(inner, UserError):
            return UserError(str(inner))
        return RuntimeError(f"a training worker failed: {inner}")
    return error


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
