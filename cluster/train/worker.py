"""One rank of a training, as a task sees it: who it is, its curve, its checkpoints, and its way to the driver.

    task(worker, payload)   worker.metrics(step, values)    rank 0 alone, sent in batches
                            worker.save(step, write)        rank 0 alone, straight to the store
                            worker.stopping()               asked once a step; the trainer's ranks agree on it
                            worker.fail(error)              any rank: the driver ends the run for all

Nothing of Ray is in a training step: a message is sent without waiting for its answer.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.train.failure import Failure
from model.files import named

POLL_SECONDS = 0.5
EVENTS = "events.jsonl"


@dataclass(frozen=True)
class Started:
    """The workers were (re)started: the curve resumes from their checkpoint's events, of which there are so many."""

    events: int
    step: int  # the checkpoint's; 0: from the start


@dataclass(frozen=True)
class StoppedAt:
    """What a task returns if it ended early, with a checkpoint of this step, because the driver asked."""

    step: int


@dataclass(frozen=True)
class Lost:
    """Ranks have gone, and Ray Train starts all anew, unless that was once too often."""

    ranks: tuple[int, ...]  # as far as is known: the others miss one before it is known which


@dataclass(frozen=True)
class Ended:
    """The task has returned on rank 0."""

    result: dict | StoppedAt


Message = dict | Started | Lost | Ended
"""An event of the curve (see cluster.events for the forms), or one of the above."""


class Board:
    """What ranks tell the driver, and the driver's wish to stop. A Ray actor, so any node reaches it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.stop = False
        self.failure: Failure | None = None
        self.actors: dict[int, Any] = {}

    def join(self, rank: int, actor: Any) -> bool:
        """Enter a rank's actor, for the driver to end it by; returns whether the run has failed already."""
        self.actors[rank] = actor
        return self.failure is not None

    def post(self, messages: list[Message]) -> bool:
        self.messages += messages
        return self.stop

    def fail(self, failure: Failure) -> None:
        """The first failure counts: those of other ranks come of it, or say the same."""
        self.failure = self.failure or failure

    def has_failed(self) -> bool:
        return self.failure is not None

    def joined(self) -> list[Any]:
        return [actor for actor in self.actors.values() if actor is not None]

    def drain(self, stop: bool) -> tuple[list[Message], Failure | None]:
        self.stop = self.stop or stop
        messages, self.messages = self.messages, []
        return messages, self.failure


@dataclass
class Worker:
    """One rank's view of the run: who it is, and its way to the board and to the store."""

    rank: int
    world_size: int
    local_rank: int
    store_url: str
    fingerprint: str
    board: Any
    nonce: str = ""  # of the driver's lease, see cluster/store/lease.py
    events: list[dict] = field(default_factory=list)  # all since step 0, also those of the run before a kill
    _unsent: list[Message] = field(default_factory=list)
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

    def tell(self, message: Started | Ended) -> None:
        """Rank 0's message for the driver alone, which has it when this returns."""
        import ray

        if self.rank == 0:
            self._unsent.append(message)
            self.flush()
            ray.get(self._asked)

    def fail(self, error: BaseException) -> None:
        """End the run for all ranks with this rank's error; the driver has it when this returns."""
        import ray

        self.flush()
        ray.get(self.board.fail.remote(Failure.of(self.rank, error)))

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

        return Artifacts(self.store_url).checkpoints(self.fingerprint, self.nonce)

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
            self.events = read_events(found[1] / EVENTS)
        return found

    def recall(self, step: int) -> dict[str, float]:
        """What rank 0 has already put on the curve at `step`; nothing on the other ranks."""
        points = [e["values"] for e in self.events if e["type"] == "metrics" and e["step"] == step]
        return {name: value for point in points for name, value in point.items()}

    def points(self, name: str) -> list[dict[str, float]]:
        """The points of rank 0's curve that have `name`, one a step and in their order; none on the other ranks."""
        of_steps = {e["step"]: e["values"] for e in self.events if e["type"] == "metrics" and name in e["values"]}
        return [of_steps[step] for step in sorted(of_steps)]

    def mean(self, sums: dict[str, tuple[float, int]]) -> dict[str, float]:
        """Means over all ranks from each rank's (sum, count) of the same names; NaN over nothing.

        Every rank must call it.
        """
        import torch
        import torch.distributed as dist

        table = torch.tensor(list(sums.values()), dtype=torch.float64)
        if self.world_size > 1:
            table = table.to(self.device if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(table)
        means = zip(sums, table.tolist(), strict=True)
        return {name: total / count if count else math.nan for name, (total, count) in means}

    def save(self, step: int, write: Callable[[Path], None], keep: int = 2) -> None:
        """Publish what `write(folder)` writes as the checkpoint of `step`. Rank 0 only; the others return."""
        if self.rank != 0:
            return
        scratch = Path(tempfile.mkdtemp(prefix="tokenmill-checkpoint-"))
        folder = scratch / f"{step}"
        folder.mkdir()  # what is published has the umask's mode, which a temporary folder hasn't
        try:
            write(folder)
            (folder / EVENTS).write_text("".join(json.dumps(e) + "\n" for e in self.events), encoding="utf-8")
            checkpoints = self.checkpoints()
            checkpoints.save(step, folder)
            checkpoints.prune(keep)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def read_events(path: Path) -> list[dict]:
    """The curve that a checkpoint has. Raises UserError for what is none."""
    with named(path):
        events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for event in events:
            if event["type"] == "metrics" and not (
                type(event["step"]) is int and all(isinstance(value, float | int) for value in event["values"].values())
            ):
                raise ValueError("a point of its curve is none")
    return events
