"""Units of work in, results out: the one way in which data work runs on Ray.

    [unit, unit, …] ── task(unit, *shared) → results ──▶ results in the order of the units

    stream    a unit gives any number of results, which come while it still runs: it may be larger than memory
    ordered   a unit gives one result
    gather    calls of any kind, each result as soon as it is there

The order never depends on how many workers there are. A window of tasks is in flight, and a task waits once a few
of its results lie unread, so memory is bounded whatever the corpus. Every wait looks whether the run is to stop;
a task whose worker died runs again; what is left when the caller has enough is cancelled.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.errors import Stopped, UserError

if TYPE_CHECKING:
    from cluster.stage import Workspace

Result = TypeVar("Result")
Check = Callable[[], None]

UNREAD = 4  # results of one task that lie in Ray's object store before the task waits
RETRIES = 3  # of a task whose worker or node died; an error that it raises is not tried again
PATIENCE = 0.5  # seconds between two looks at whether the run is to stop


def stop_check(ws: Workspace) -> Check:
    """What `stream`, `ordered` and `gather` call as they wait: raises Stopped once the run is asked to stop."""

    def check() -> None:
        if ws.stopping():
            raise Stopped(f"{ws.step} stopped; the same command starts it over and keeps the stages before it.")

    return check


def stream(
    task: Callable[..., Iterator[Result]],
    units: Iterable[Any],
    *shared: Any,
    check: Check | None = None,
    window: int | None = None,
    fetch: bool = True,
    kill: bool = False,
) -> Iterator[Result]:
    """All that `task(unit, *shared)` yields on Ray, unit after unit.

    Args:
        task: a generator function that workers can import.
        shared: further arguments, put into the object store once.
        check: called while results are waited for and after each; what it raises ends the work.
        window: units in flight at most; default: two for each CPU of the cluster.
        fetch: False gives references (see `unwrap`) to results, which stay where they are in the object store.
        kill: end the worker of a task that is cancelled, for native code that doesn't listen to Python.
    Raises:
        UserError: a task's, with its own words.
        Exception: any other that a task raised, of its own type, caused by the worker's traceback.
    """
    import ray

    window = window or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    options: dict[str, Any] = {"num_cpus": 1, "max_retries": RETRIES, "num_returns": "streaming"}
    options["_generator_backpressure_num_objects"] = UNREAD
    remote: Any = ray.remote(**options)(task)
    references = [ray.put(value) for value in shared]
    in_flight: deque[_Running] = deque()
    remaining = iter(units)
    try:
        while True:
            while len(in_flight) < window and (unit := next(remaining, _END)) is not _END:
                in_flight.append(_Running(remote.remote(unit, *references)))
            if not in_flight:
                return
            first = in_flight[0]
            while not first.ready(PATIENCE):
                if check:
                    check()
                # The first may wait for a CPU (its worker died) that another holds, waiting to be read.
                for other in list(in_flight)[1:]:
                    other.take()
            if (reference := first.next()) is None:
                in_flight.popleft()
                continue
            yield unwrap(reference) if fetch else reference
            if check:
                check()
    finally:
        for running in in_flight:
            ray.cancel(running.results, force=kill)


_END = object()


class _Running:
    """A task and those of its results that were taken out of its way; they lie in Ray's object store or on disk."""

    def __init__(self, results: Any):
        self.results, self.taken, self.ended = results, deque[Any](), False

    def ready(self, seconds: float) -> bool:
        """Whether the next result, or the end, is there within so long."""
        import ray

        return bool(self.taken) or self.ended or bool(ray.wait([self.results], timeout=seconds)[0])

    def next(self) -> Any | None:
        """A reference to the next result; None at the end."""
        return self.taken.popleft() if self.taken else None if self.ended else next(self.results, None)

    def take(self) -> None:
        """Take one result that lies unread, so that the task may go on to its end."""
        import ray

        if not self.ended and ray.wait([self.results], timeout=0, fetch_local=False)[0]:
            reference = next(self.results, None)
            if reference is None:
                self.ended = True
            else:
                self.taken.append(reference)


def ordered(
    task: Callable[..., Result],
    units: Iterable[Any],
    *shared: Any,
    check: Check | None = None,
    window: int | None = None,
    fetch: bool = True,
    kill: bool = False,
) -> Iterator[Result]:
    """`task(unit, *shared)` for every unit on Ray, results in the order of the units; see `stream`."""

    @functools.wraps(task)  # the task's name on Ray's dashboard
    def one(*arguments: Any) -> Iterator[Result]:
        yield task(*arguments)

    return stream(one, units, *shared, check=check, window=window, fetch=fetch, kill=kill)


def gather(
    calls: Iterable[tuple[Callable[..., Any], tuple[Any, ...]]], check: Check | None = None
) -> Iterator[tuple[int, Any]]:
    """(number of the call, result) of every `function(*arguments)` on Ray, in the order in which they end.

    All calls are handed to Ray at once. Stops, errors and lost workers: see `stream`.
    """
    import ray

    # A wrapper of one's own kind for each function: Ray sends each to the workers once.
    remote: dict[Callable[..., Any], Any] = {}
    pending: dict[Any, int] = {}
    for number, (function, arguments) in enumerate(calls):
        if function not in remote:
            remote[function] = ray.remote(num_cpus=1, max_retries=RETRIES)(function)
        pending[remote[function].remote(*arguments)] = number
    try:
        while pending:
            for reference in ray.wait(list(pending), timeout=PATIENCE)[0]:
                yield pending.pop(reference), unwrap(reference)
            if check:
                check()
    finally:
        for reference in pending:
            ray.cancel(reference)


def unwrap(reference: Any) -> Any:
    """A task's result. Raises what the task raised: a UserError alone, another with the worker's traceback."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, Exception) and not isinstance(cause, RayTaskError):
            raise cause from error
        raise
