"""A function on N Ray Train workers, with its events, its checkpoints, its stop signal and its errors.

    driver                         Ray Train worker (rank r of N)
    fit(ws, task, payload)   ──▶   task(Worker, payload) -> result of rank 0
      poll the board         ◀──   worker.post(event): rank 0, in batches
      ws.stopping()          ──▶   worker.stopping(): asked once a step, agreed among ranks by the trainer
      ws.checkpoints         ◀──   worker.save(step, write): rank 0, straight to the store
      end all ranks, raise   ◀──   worker.fail(error): any rank

Ray Train places the workers, wires torch.distributed and restarts them when one dies. An exception is another matter:
its rank posts it and the driver ends all ranks at once, those too that wait for it in an all-reduce, and raises it; no
restart would mend it. A checkpoint carries the events so far, so what a killed run leaves is one curve, not two.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cluster.errors import Stopped
from cluster.stage import Workspace
from cluster.train.failure import Failure, is_echo
from cluster.train.worker import EVENTS, POLL_SECONDS, Board, Ended, Lost, Started, StoppedAt, Worker

# glibc maps what is larger than 32 MB afresh each time, and touching new pages costs more than most elementwise work on
# them; training frees and asks for the same sizes at every step. One arena, for a thread's own ends at 64 MB.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_ARENA_MAX": "1"}

DEAD = "WorkerHealthCheck"  # Ray Train's errors of a worker that has gone, …Failed and …Timeout; others only miss it

Payload = TypeVar("Payload")


@dataclass(frozen=True)
class Assignment:
    """What each worker is given."""

    task: Callable[[Worker, Any], dict | StoppedAt]
    payload: Any
    board: Any
    store_url: str
    fingerprint: str
    nonce: str  # of the lease on it
    threads: int
    in_driver: bool  # this process trains: there is no actor to end


def fit(
    ws: Workspace,
    task: Callable[[Worker, Payload], dict | StoppedAt],
    payload: Payload,
    on_event: Callable[[dict], None] | None = None,
) -> dict:
    """Run `task(worker, payload)` on the session's training workers and return what rank 0 returned.

    Args:
        ws: the stage's workspace; its events.jsonl is the checkpoint's curve, then what the workers post.
        task: an importable function; its return value must be plain JSON, or StoppedAt.
        payload: its second argument, a frozen dataclass of configs and artifacts.
        on_event: called in the driver for each event, for progress.

    Raises:
        Stopped: the run was asked to stop; the checkpoint is in the store.
        RuntimeError: workers died more often than `[cluster] max_failures` allows.
        Exception: what the task raised on any rank first, with that rank's traceback as its cause.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    from cluster.train.rendezvous import Rendezvous

    session = ws.session
    workers, use_gpu, cpus = session.workers()
    ws.attempt.devices = max(1, workers)
    board: Any = ray.remote(num_cpus=0)(Board).remote()
    log = ws.out / EVENTS
    found = ws.checkpoints.latest()
    log.write_bytes((found[1] / EVENTS).read_bytes() if found else b"")

    scratch = Path(tempfile.mkdtemp(prefix="tokenmill-train-"))
    assignment = Assignment(
        task=task,
        payload=payload,
        board=board,
        store_url=ws.artifacts.store.url,
        fingerprint=ws.fingerprint,
        nonce=ws.checkpoints.nonce,
        threads=max(1, int(cpus)),
        in_driver=not workers,
    )
    trainer = TorchTrainer(
        _work,
        train_loop_config={"assignment": assignment},
        scaling_config=ScalingConfig(  # none: Ray Train's local mode, in this process
            num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus} if workers else None
        ),
        torch_config=Rendezvous(backend="nccl" if use_gpu else "gloo", interface=session.config.interface),
        run_config=RunConfig(
            name=ws.fingerprint,
            storage_path=str(scratch),  # holds no checkpoint: those go to our store
            failure_config=FailureConfig(max_failures=session.config.max_failures),
            callbacks=[_on_exceptions(board)],
            logging_config=LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": ALLOCATOR},
        ),
    )
    raised: list[BaseException] = []

    def run() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            raised.append(error)

    # In a thread: in the main one Ray would take SIGINT for itself and abort without a checkpoint.
    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    result: dict | StoppedAt | None = None
    failure: Failure | None = None
    lost: Lost | None = None
    with log.open("a", encoding="utf-8") as file:
        while True:
            running = thread.is_alive()  # asked before the last drain, so that nothing is left behind
            messages, failed = ray.get(board.drain.remote(ws.stopping()))
            for message in messages:
                if isinstance(message, Ended):
                    result = message.result
                elif isinstance(message, Lost):
                    lost = message
                elif isinstance(message, Started):
                    if lost:
                        ws.note(_loss(ws.step, lost, message.step))
                        session.lost_workers()  # said
                        lost = None
                    _hold_lines(log, message.events, ws)
                    file.seek(0, 2)
                else:
                    file.write(json.dumps(message) + "\n")
                    if on_event:
                        on_event(message)
            file.flush()
            if failed and not failure:
                for actor in ray.get(board.joined.remote()):
                    ray.kill(actor)
            failure = failed
            if not running:
                break
            thread.join(POLL_SECONDS)
    ray.kill(board)
    shutil.rmtree(scratch, ignore_errors=True)
    if failure:
        raise failure.error()
    if raised:
        raise RuntimeError(f"a training worker failed: {_death(raised[0])}") from raised[0]
    if result is None:
        raise RuntimeError(f"{ws.step}: the training workers ended without a result.")
    if isinstance(result, StoppedAt):
        raise Stopped(f"{ws.step} stopped at step {result.step}, with a checkpoint.")
    result["devices"] = max(1, workers)
    result["device"] = "gpu" if use_gpu else "cpu"
    return result


def _work(config: dict[str, Assignment]) -> None:
    """The function that Ray Train calls on each worker."""
    import ray
    import torch
    from ray import train

    given, context = config["assignment"], train.get_context()
    torch.set_num_threads(given.threads)
    worker = Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        store_url=given.store_url,
        fingerprint=given.fingerprint,
        board=given.board,
        nonce=given.nonce,
    )
    actor = None if given.in_driver else ray.get_runtime_context().current_actor
    if ray.get(given.board.join.remote(worker.rank, actor)):
        return
    try:
        found = worker.resume()
        worker.tell(Started(len(worker.events), found[0] if found else 0))
        result = given.task(worker, given.payload)
    except Exception as error:
        if is_echo(error):
            raise  # a rank died: Ray Train restarts the workers
        worker.fail(error)
        return  # and wait, for the driver to end this process too
    worker.tell(Ended(result))


def _on_exceptions(board: Any) -> Any:
    """Ends the training where Ray Train would restart workers that the driver has ended because of a failure.

    Where it does restart them, the driver hears which were lost.
    """
    import ray
    from ray.train import UserCallback

    class OnExceptions(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            if ray.get(board.has_failed.remote()):
                raise RuntimeError("a rank has failed")  # an error of the controller's is not retried
            died = [r for r, error in worker_exceptions.items() if type(error).__name__.startswith(DEAD)]
            ray.get(board.post.remote([Lost(tuple(sorted(died)))]))

    return OnExceptions()


def _loss(stage: str, lost: Lost, step: int) -> str:
    ranks = f" (rank {', '.join(map(str, lost.ranks))})" if lost.ranks else ""
    where = f"the checkpoint of step {step}" if step else "its start"
    return f"{stage}: a training worker was lost{ranks}. The workers are restarted, and go on from {where}."


def _hold_lines(path: Path, count: int, ws: Workspace) -> None:
    """Make the curve's file hold the `count` events of the checkpoint that the workers resume from: no more, no less.

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


def _death(error: BaseException) -> BaseException:
    """What Ray Train says of a worker, out of its wrapping."""
    failures = getattr(error, "worker_failures", None) or {}
    return next(iter(failures.values()), error)
