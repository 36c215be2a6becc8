"""A run's steps in order, each with its attempts; the first that fails or is stopped ends the line.

    walk(run)   for each step   run.execute(step)      an infrastructure fault is tried again, all else is not
                                watcher.begun/ended    whoever shows it, and never delays it (prefect_mirror.py)

The store decides what is to be done: a step whose artifact is there is only found. Stages run in the caller's thread,
the main one, so that signals reach them.
"""

from __future__ import annotations

import time

from cluster.errors import Stopped
from flows.faults import in_a_line, is_infrastructure_fault
from flows.run import Run
from flows.watch import Ending

RETRY_SECONDS = (5.0, 30.0)  # before the second attempt at a step, and before the third
POLL_SECONDS = 0.2


def walk(run: Run) -> Ending:
    """Make or find what each step makes; `run.status`, `run.errors` and the watcher have what came of it."""
    ending = Ending("completed")
    for step in run.steps:
        run.watcher.begun(step.name)
        ending = _step(run, step.name)
        if ending.kind != "completed":
            break
    else:
        cached = sum(outcome.cached for outcome in run.outcomes.values())
        ending = Ending("completed", f"{len(run.steps)} stages, {cached} cached")
    run.status = {"completed": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[ending.kind]
    run.watcher.over(ending)
    return ending


def _step(run: Run, name: str) -> Ending:
    for wait in (*RETRY_SECONDS, None):
        try:
            run.execute(name)
        except Stopped as stopped:
            run.watcher.ended(name, stopped, False)
            return Ending("stopped", f"{name}: {stopped}")
        except Exception as error:
            run.errors.setdefault(name, error)
            again = wait is not None and not run.stop() and is_infrastructure_fault(error)
            run.watcher.ended(name, error, again)
            if not again:
                return Ending("failed", f"{name}: {error}")
            run.screen.fault(name, f"{in_a_line(error)} It is tried again.")
            _wait(run, wait or 0.0)
        else:
            run.watcher.ended(name, None, False)
            break
    return Ending("completed")


def _wait(run: Run, seconds: float) -> None:
    """Until the next attempt, or until the run is asked to stop; the attempt then ends by itself."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not run.stop():
        time.sleep(min(POLL_SECONDS, max(end - time.monotonic(), 0.0)))
