"""Parts in, ordered tables out: the one way in which the data stages use Ray Data.

    [part, part, …] ── Ray Data: read(part) → tables ──▶ tables in the order of the parts

Each part is one task, which may give any number of tables while it runs (they stream, so a part may be far
larger than memory). The order is that of the parts and of the tables within each, whatever the number of
workers; Ray Data's back-pressure bounds what is in flight.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 8 << 20


def stream(
    parts: list[dict[str, Any]],
    read: Callable[[dict[str, Any]], Iterable[pa.Table]],
    *,
    name: str,
    cpus: float = 1.0,
) -> Iterator[pa.Table]:
    """`read(part)` for every part, in Ray tasks, as one ordered stream of tables.

    Args:
        parts: plain JSON values: each is sent to the task that reads it.
        read: runs in a worker; importable there. All its tables have one schema.
        name: what Ray's dashboard shows.
        cpus: CPUs that a task holds.
    Raises:
        Exception: what `read` raised in a worker, with the worker's traceback as its cause.
    """
    import ray.data

    if not parts:
        return
    with _quiet_context():
        dataset = ray.data.from_items(
            [{"part": json.dumps(part)} for part in parts], override_num_blocks=len(parts)
        ).map_batches(_Reader(read, name), batch_size=None, batch_format="pyarrow", num_cpus=cpus, zero_copy_batch=True)
        batches: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        tables = iter(batches)
        while (table := _next(tables)) is not None:
            if table.num_rows:
                yield table


def _next(tables: Iterator[pa.Table]) -> pa.Table | None:
    """The next table; what went wrong in a worker is raised as it was raised there."""
    from ray.exceptions import RayTaskError

    try:
        return next(tables, None)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Exception) and not isinstance(cause, RayTaskError):
            if cause.args and isinstance(cause.args[0], str):  # without Ray's advice on retries
                cause.args = (cause.args[0].split("\nFailed to apply UDF transform")[0], *cause.args[1:])
            raise cause from error
        raise


class _Reader:
    """What a task runs; a name of its own for Ray's statistics."""

    def __init__(self, read: Callable[[dict[str, Any]], Iterable[pa.Table]], name: str):
        self.read, self.__name__ = read, name

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for part in batch.column("part").to_pylist():
            yield from self.read(json.loads(part))


@contextlib.contextmanager
def _quiet_context() -> Iterator[None]:
    """Order kept, small blocks, no progress bars; the process's own settings are put back afterwards."""
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised, not also printed
    context = DataContext.get_current()
    options = context.execution_options
    before = (
        options.preserve_order,
        context.target_max_block_size,
        context.enable_progress_bars,
        context.print_on_execution_start,
    )
    options.preserve_order, context.target_max_block_size = True, BLOCK_BYTES
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        yield
    finally:
        (
            options.preserve_order,
            context.target_max_block_size,
            context.enable_progress_bars,
            context.print_on_execution_start,
        ) = before
