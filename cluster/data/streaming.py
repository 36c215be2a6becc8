"""Units of work in, results out: the one way in which data work runs on Ray.

    [unit, unit, …] ── task(unit, *shared) → results ──▶ results in the order of the units

    stream    Ray Data   a unit gives any number of results, which come while it runs: it may be larger than memory
    ordered   Ray Data   a unit gives one result
              Ray tasks  … where the result is to stay in the object store, or a stop is to end the worker
    gather    Ray tasks  calls of any kind, each result as soon as it is there

Ray Data bounds what is in flight, whatever the corpus: a task waits once what it has given lies unread. Its results are
blocks of rows, so tables are streamed as they are and all else as pickled rows. It has no references to results, no
results out of order, and no way to end native code: these are tasks of their own.

The order never depends on how many workers there are. Every wait looks whether the run is to stop; a task whose worker
died runs again; what is left when the caller has enough is cancelled.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from cluster.errors import Stopped, UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from cluster.stage import Workspace

Result = TypeVar("Result")
Check = Callable[[], None]

BLOCK_BYTES = 8 << 20  # tables of one unit are joined or cut to about this
RETRIES = 3  # of a task whose worker or node died; an error that it raises is not tried again
PATIENCE = 0.5  # seconds between two looks at whether the run is to stop
PICKLED = "pickled result"  # the column of results that are no tables


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
) -> Iterator[Result]:
    """All that `task(unit, *shared)` yields, by Ray Data, unit after unit.

    Args:
        task: a generator function that workers can import. It yields either pyarrow tables of one schema, whose rows
            come in blocks of about BLOCK_BYTES and of one unit each, or anything else that can be pickled, as it is.
        shared: further arguments, put into the object store once.
        check: called while results are waited for and after each, from any thread; what it raises ends the work.
        window: units in flight at most; default: what the cluster has CPUs and memory for.
    Raises:
        UserError: a task's, with its own words.
        Exception: any other that a task raised, of its own type, caused by the worker's traceback.
    """
    import ray
    import ray.cloudpickle
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    rows = [{"unit": ray.cloudpickle.dumps(unit)} for unit in units]
    if not rows:
        return
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised, not also printed
    items = ray.data.from_items(rows, override_num_blocks=len(rows))
    context: Any = items.context  # this dataset's copy of the process's settings
    context.execution_options.preserve_order = True
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True  # `_Failed`, not one of Ray Data's around it
    watch = _Watch(check)
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, watch]
    with warnings.catch_warnings():
        # Ray Data's own default is to retry without end, and it has no other way to say how often.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        mapped: Any = items.map_batches(
            _Work(task, [ray.put(value) for value in shared]),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.TaskPoolStrategy(size=window),
            num_cpus=1,
            max_retries=RETRIES,
        )
    blocks = mapped.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    with closing(iter(blocks)) as tables:  # closed: what still runs is cancelled
        while (table := _next(tables, watch)) is not None:
            for result in _results(table):
                yield result
                if check:
                    check()


def _next(tables: Iterator[pa.Table], watch: _Watch) -> pa.Table | None:
    """The next block; what went wrong is raised as it was raised in the worker, or by the check."""
    from ray.exceptions import RayTaskError

    try:
        return next(tables, None)
    except RayTaskError as error:
        error.__cause__ = None  # Ray Data's advice to report a bug in it
        _raise(error)
    except Exception:
        if watch.raised:
            raise watch.raised from None
        raise


def _results(table: pa.Table) -> Iterator[Any]:
    if table.column_names == [PICKLED]:
        for value in table.column(PICKLED):
            yield pickle.loads(value.as_buffer())
    elif table.num_rows:
        yield table


class _Work:
    """What a task of Ray Data does with its unit."""

    def __init__(self, task: Callable[..., Iterator[Any]], references: list[Any]):
        self.task, self.references = task, references
        self.__name__ = task.__name__  # on Ray's dashboard

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        import pyarrow as pa
        import ray
        import ray.cloudpickle

        try:
            for unit in batch.column("unit").to_pylist():
                for result in self.task(pickle.loads(unit), *ray.get(self.references)):
                    if not isinstance(result, pa.Table):
                        result = pa.table({PICKLED: pa.array([ray.cloudpickle.dumps(result)], pa.large_binary())})
                    yield result
        except Exception as error:
            raise _Failed(error) from error


class _Failed(Exception):
    """Carries a task's error, to which Ray Data would add advice."""

    def __init__(self, error: Exception):
        super().__init__()
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return _Failed, (self.error,)

    def __str__(self) -> str:
        return ""


class _Watch:
    """Looks in Ray Data's scheduling loop whether the run is to stop: several times a second, results or none.

    It is what Ray Data calls an execution callback, and its class: called, it gives itself.
    """

    def __init__(self, check: Check | None = None):
        self.check, self.raised = check, None

    def __call__(self) -> _Watch:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Watch, ()  # the settings go to the workers, the check stays here

    def on_execution_step(self, executor: Any) -> None:
        if self.check:
            try:
                self.check()
            except BaseException as error:
                self.raised: BaseException | None = error
                raise

    def before_execution_starts(self, executor: Any) -> None: ...
    def after_execution_succeeds(self, executor: Any) -> None: ...
    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


def ordered(
    task: Callable[..., Result],
    units: Iterable[Any],
    *shared: Any,
    check: Check | None = None,
    window: int | None = None,
    fetch: bool = True,
    kill: bool = False,
) -> Iterator[Result]:
    """`task(unit, *shared)` for every unit, results in the order of the units; errors and stops as in `stream`.

    Args:
        fetch: False gives references (see `unwrap`) to results, which stay where they are in the object store.
        kill: end the worker of a task that is cancelled, for native code that doesn't listen to Python.
    """
    import ray

    window = window or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    remote: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(task)
    references = [ray.put(value) for value in shared]
    in_flight: deque[Any] = deque()
    remaining = iter(units)
    try:
        while True:
            while len(in_flight) < window and (unit := next(remaining, _END)) is not _END:
                in_flight.append(remote.remote(unit, *references))
            if not in_flight:
                return
            while not ray.wait([in_flight[0]], timeout=PATIENCE, fetch_local=fetch)[0]:
                if check:
                    check()
            reference = in_flight.popleft()
            yield unwrap(reference) if fetch else reference
            if check:
                check()
    finally:
        for reference in in_flight:
            ray.cancel(reference, force=kill)


_END = object()


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
        _raise(error)


def _raise(error: Any) -> NoReturn:
    """Raise what a task raised, given what Ray makes of it."""
    from ray.exceptions import RayTaskError

    cause = error.cause.error if isinstance(error.cause, _Failed) else error.cause
    if isinstance(cause, UserError):
        raise cause from None
    if isinstance(cause, Exception) and not isinstance(cause, RayTaskError):
        raise cause from error
    raise error
