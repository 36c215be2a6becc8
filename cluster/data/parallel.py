"""Row groups of documents in, results out in the same order: the Ray tasks of the tokenizer and pack stages.

    [unit, unit, …] ── task(unit, *shared) ──▶ results, in the order of the units

Only a window of tasks is in flight, so the driver's memory is bounded whatever the corpus, and the order of
the results never depends on how many workers there are.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.errors import UserError

if TYPE_CHECKING:
    from cluster.data.shards import RowGroup
    from cluster.stage import Workspace
    from cluster.store.artifact import Artifact

Result = TypeVar("Result")


def text_hash(text: str | bytes, salt: str) -> int:
    """A 64-bit hash of a document's text, uniform and the same in every process.

    The same text gives the same number wherever it lies, so what is decided by it holds for all duplicates.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=salt.encode()).digest(), "little")


def documents(artifact: Artifact, unit: RowGroup) -> Iterator[tuple[str, str]]:
    """(source, text) of one row group, in a worker."""
    from cluster.data.shards import read_group

    table = read_group(artifact.path(verify=False), unit)
    for batch in table.select(["source", "text"]).to_batches(max_chunksize=1024):
        yield from zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)


def ordered(
    task: Callable[..., Result],
    units: Iterable[Any],
    *shared: Any,
    window: int | None = None,
    check: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """`task(unit, *shared)` for every unit on Ray, results in the order of the units.

    Args:
        task: a function of a module that workers can import.
        shared: further arguments, put into the object store once.
        window: tasks in flight at most; default: two for each CPU of the cluster.
        check: called between results; what it raises ends the work.
    """
    import ray

    window = window or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    remote: Any = ray.remote(num_cpus=1, max_retries=3)(task)
    references = [ray.put(value) for value in shared]
    pending: deque[Any] = deque()
    remaining = iter(units)
    try:
        while True:
            while len(pending) < window:
                try:
                    pending.append(remote.remote(next(remaining), *references))
                except StopIteration:
                    break
            if not pending:
                return
            while not ray.wait([pending[0]], timeout=0.5)[0]:
                if check:
                    check()
            yield unwrap(pending.popleft())
            if check:
                check()
    finally:
        for reference in pending:
            ray.cancel(reference)


def unwrap(reference: Any) -> Any:
    """The task's value, or the task's own error where it is one that a user can act on."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise


def start_ray(ws: Workspace) -> None:
    """Ray, where the run's session has not started it yet."""
    ws.session.ensure()


def stop_check(ws: Workspace) -> Callable[[], None]:
    """For `ordered`: raises Stopped once the run has been asked to stop."""
    from cluster.errors import Stopped

    def check() -> None:
        if ws.stopping():
            raise Stopped(f"{ws.step} stopped; it starts over with the next run, the stages before it are kept.")

    return check
