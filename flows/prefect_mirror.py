"""What Prefect is shown of a run: a flow with a task for each stage, in a thread that follows the work.

    main thread        begun ─ ended ─ progress ─ log lines     returns at once; of too much the newest is kept
                         │       │        │           │
    mirror's thread    task ── state ── artifacts ── logs       waits for Prefect as long as it has to

So a Prefect that is slow, hangs, dies or was never there delays nothing of the work, and Ctrl-C never waits for it. At
the end it is given a moment for the rest; what it was not shown by then is said in words. One that was away and is back
is shown the rest.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import itertools
import logging
import os
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cluster.errors import Stopped
from cluster.masking import masked
from cluster.outside import plain
from flows import prefect_logs, prefect_page
from flows.prefect_server import configured_api
from flows.watch import Ending, Watcher

if TYPE_CHECKING:
    from prefect import Task
    from prefect.states import State

    from flows.run import Run

FLOW = "tokenmill"
LINES = 2000  # of the log that wait for Prefect; of more the oldest are given up
PROGRESS_SECONDS = 3.0  # between two updates of a stage's progress
AGAIN_SECONDS = 10.0  # between two attempts to begin the flow run on an API that doesn't answer
# How long a run that has ended waits for its mirror: one that was stopped, any other, and while Prefect's own API is
# still on its way up.
STOPPED_SECONDS, CLOSING_SECONDS, STARTING_SECONDS = 3.0, 10.0, 30.0
IMPORTED = (
    "prefect.artifacts", "prefect.events.worker", "prefect.flow_engine", "prefect.logging.handlers",
    "prefect.task_engine", "prefect.utilities.visualization", "pydantic.v1", "rich._emoji_codes",
)  # fmt: skip
ATTEMPTS = 10  # bounds Prefect's own count of retries, which follows the work's

_log = logging.getLogger(__name__)
_abandoned = threading.Event()


class AttemptFailed(Exception):
    """An attempt at a stage, as its task in Prefect fails by it: the words of the work's own exception."""


class Mirror(Watcher):
    """Follows one run. The methods of `Watcher`, `progress` and `say` are the work's; the rest is the thread's.

    After `close` `unshown` says what Prefect was not shown, "" where it has all.
    """

    def __init__(self, run: Run):
        self.run = run
        self.flow_run_id = ""
        self.unshown = ""
        self._changed = threading.Condition()
        self._begun: list[str] = []
        self._ends: dict[str, list[tuple[BaseException | None, bool]]] = {}  # step -> (error, again) of each attempt
        self._progress: tuple[str, float, float, str] | None = None  # the newest of all
        self._lines: deque[tuple[str, int, str]] = deque(maxlen=LINES)  # (step, level, text)
        self._dropped = 0
        self._ending: Ending | None = None
        self._at = ""  # the step that the work is at
        self._loggers: dict[str, Any] = {}
        self._tasks_done: list[str] = []
        self._missing: list[str] = []  # pages that could not be sent
        self._problem = ""
        self._finished = False  # the thread has done all, and all has been sent
        self._attached = contextlib.ExitStack()
        self._thread: threading.Thread | None = None

    def start(self) -> Mirror:
        """Begin a flow run of this run's own, on the configured API or on the embedded one once it is up."""
        return self._start(self._orchestrate)

    def within_flow(self) -> Mirror:
        """Show the tasks in the flow run that the caller is in, which is Prefect's own affair."""
        context = contextvars.copy_context()

        def tasks() -> bool:
            context.run(self._tasks)
            return True

        return self._start(tasks)

    def _start(self, work: Callable[[], bool]) -> Mirror:
        def guarded() -> None:
            try:
                self._finished = work()
            except BaseException as error:
                self._problem = plain(f"{type(error).__name__}: {error}")
                _log.warning("the run is not shown to Prefect any more", exc_info=True)

        _import()
        self._attached.enter_context(prefect_logs.attached(self.run, self.say))
        self._thread = threading.Thread(target=guarded, name="prefect-mirror", daemon=True)
        self._thread.start()
        return self

    # -- the work's side: nothing here waits -------------------------------------------------------------------

    def begun(self, step: str) -> None:
        with self._changed:
            self._at = step
            self._begun.append(step)
            self._changed.notify_all()

    def ended(self, step: str, error: BaseException | None, again: bool) -> None:
        with self._changed:
            self._ends.setdefault(step, []).append((error, again))
            self._changed.notify_all()

    def over(self, ending: Ending) -> None:
        if ending.kind == "failed":
            self.say(ending.message, logging.ERROR, step="")
        if ending.kind == "completed":
            for line in (line for outcome in self.run.outcomes.values() for line in outcome.summary.closing()):
                self.say(line, step="")
        with self._changed:
            self._ending = ending
            self._changed.notify_all()

    def progress(self, step: str, done: float, total: float, text: str) -> None:
        self._progress = (step, done, total, text)

    def say(self, text: str, level: int = logging.INFO, step: str | None = None) -> None:
        """A line for the log of the stage at work, or of `step` ("": of the flow)."""
        with self._changed:
            self._dropped += len(self._lines) == LINES
            self._lines.append((self._at if step is None else step, level, plain(text)))

    def close(self) -> None:
        """Give Prefect a moment for the rest; called once, after `over` or in place of it."""
        with self._changed:
            self._ending = self._ending or Ending("failed", "the run ended early")
            self._changed.notify_all()
        begun, thread = time.monotonic(), self._thread
        while thread and thread.is_alive() and time.monotonic() - begun < self._patience() and not self._server_ended():
            thread.join(0.1)
        self._attached.close()
        if not self._finished:
            _abandoned.set()
        self.unshown = self._words()
        if self.unshown:
            _log.warning("%s", self.unshown)

    def _patience(self) -> float:
        if self.run.stop():
            return STOPPED_SECONDS
        server = self.run.server
        return STARTING_SECONDS if server and not server.answered else CLOSING_SECONDS

    def _server_ended(self) -> bool:
        return self.run.server is not None and self.run.server.ended()

    def _words(self) -> str:
        """What Prefect was not shown, and why."""
        states = [] if self._finished else [step for step in self._begun if step not in self._tasks_done]
        parts = [f"the states of {', '.join(states)}"] if states else []
        parts += ["the end of the flow run"] if not self._finished and not states else []
        parts += [", ".join(dict.fromkeys(self._missing))] if self._missing else []
        lines = self._dropped + (0 if self._finished else len(self._lines))
        parts += [f"{lines} line{'s' * (lines != 1)} of the log"] if lines else []
        if not parts:
            return ""
        embedded = self.run.server is not None
        where = "Prefect's embedded API" if embedded else f"Prefect at {masked(configured_api() or '')}"
        why = self._problem or ("it does not answer" if not self._finished else "")
        if self._server_ended():
            why = "its process has ended"
        why = textwrap.shorten(why.split("\n")[0], 160, placeholder=" …")
        return f"{where} has not been shown all of this run ({why}): {'; '.join(parts)}. None of the work is missing."

    # -- the thread's side --------------------------------------------------------------------------------------

    def _orchestrate(self) -> bool:
        """The flow run; whether all has been sent.

        Its parameters are those that the run was opened with: run again from the UI, they give the same.

        Raises:
            Exception: whatever Prefect's engine raises once the flow run has begun; before, it is tried again.
        """
        from prefect import Flow
        from prefect.settings import temporary_settings

        run = self.run
        run.api()
        if run.server and not run.server.answered:  # stopped before it was up
            return False

        def opened(recipe: str, overrides: list[str], until: str | None) -> State:
            return self._tasks()

        line = Flow(opened, name=FLOW, flow_run_name=run.name, persist_result=False)
        with temporary_settings(run.server.settings() if run.server else {}):
            while True:
                try:
                    line(run.source, list(run.overrides), run.until, return_state=True)
                    break
                except Exception as error:
                    if self.flow_run_id or self._ending or self._server_ended():
                        raise
                    self._say_away(error)
                with self._changed:
                    self._changed.wait_for(lambda: self._ending, AGAIN_SECONDS)
            return _drained()

    def _say_away(self, error: Exception) -> None:
        if not self._problem:
            where = masked(configured_api() or "") or "its embedded API"
            self.run.screen.note(
                f"Prefect does not answer at {where}: the run goes on, and is shown there once it does"
            )
        self._problem = plain(f"{type(error).__name__}: {error}")

    def _tasks(self) -> State:
        """The flow's body: a task for each step that is begun, until the line is over."""
        from prefect import get_run_logger
        from prefect.context import FlowRunContext

        context = FlowRunContext.get()
        self.flow_run_id = str(context.flow_run.id) if context and context.flow_run else ""
        self._loggers[""] = get_run_logger()
        self._problem = ""
        while (step := self._next()) is not None:
            self._task(step)(return_state=True)
            self._tasks_done.append(step)
        ending = self._ending
        assert ending is not None
        self._pass_on_lines()
        if ending.kind == "completed":
            self._page("the table of stages", prefect_page.closing, self.run)
        return state_of(ending)

    def _next(self) -> str | None:
        """The next step, once it is begun; None once the line is over."""
        done = len(self._tasks_done)
        with self._changed:
            self._changed.wait_for(lambda: len(self._begun) > done or self._ending)
            return self._begun[done] if len(self._begun) > done else None

    def _task(self, step: str) -> Task:
        from prefect import Task
        from prefect.cache_policies import NO_CACHE

        attempts = itertools.count(1)
        again = False

        def stage() -> State:
            nonlocal again
            attempt = next(attempts)
            try:
                return self._attend(step, attempt)
            except AttemptFailed:
                again = self._ends[step][attempt - 1][1]
                raise

        return Task(
            stage,
            name=step,
            task_run_name=step,
            persist_result=False,
            cache_policy=NO_CACHE,
            retries=ATTEMPTS,
            retry_delay_seconds=0,
            retry_condition_fn=lambda *_: again,
        )

    def _attend(self, step: str, attempt: int) -> State:
        """One attempt at a step as its task sees it: shows what there is until the attempt has ended.

        Raises:
            AttemptFailed: so did the work.
        """
        from prefect import get_run_logger
        from prefect.states import Cancelled, Completed

        self._loggers[step] = get_run_logger()
        shown = prefect_page.progress(self.run, step)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._ends.get(step, ())) >= attempt, PROGRESS_SECONDS)
                ends = self._ends.get(step, [])
                ended = len(ends) >= attempt
                over = self._ending is not None
            self._pass_on_lines()
            if ended or over:
                break
            newest = self._progress
            if newest and newest[0] == step:
                self._page(f"the progress of {step}", shown.show, *newest[1:])
        error = ends[attempt - 1][0] if ended else Stopped("the run ended early")
        whole = error is None
        self._page(f"the progress of {step}", shown.close, whole)
        if isinstance(error, Stopped):
            return Cancelled(name="Stopped", message=plain(str(error)))
        if error is not None:
            raise AttemptFailed(plain(f"{type(error).__name__}: {error}"))
        self._page(f"the report of {step}", prefect_page.report, self.run, step)
        outcome = self.run.outcomes[step]
        words = outcome.artifact.manifest.key
        return Completed(name="Cached", message=words) if outcome.cached else Completed(message=words)

    def _page(self, what: str, send: Callable[..., bool], *args: Any) -> None:
        """Send a page, unless nobody is there to take it; what isn't sent is missing."""
        if self._server_ended() or not send(*args):
            self._missing.append(what)

    def _pass_on_lines(self) -> None:
        """Give the lines of steps whose tasks have begun to Prefect's loggers, which send them in the background."""
        while True:
            with self._changed:
                if not self._lines or self._lines[0][0] not in self._loggers:
                    return
                step, level, text = self._lines.popleft()
            self._loggers[step].log(level, "%s", text)


def state_of(ending: Ending) -> State:
    """The flow run's last state."""
    from prefect.states import Cancelled, Completed, Failed

    message = plain(ending.message)
    if ending.kind == "stopped":
        return Cancelled(name="Stopped", message=message)
    return (Completed if ending.kind == "completed" else Failed)(message=message)


def _import() -> None:
    """What the thread will need, in the main one: two threads that import what imports one another see it half made.

    Ray's first `put` asks for pydantic.v1, as does the making of a flow.
    """
    for name in IMPORTED:
        importlib.import_module(name)


def _drained() -> bool:
    """Let the states and logs that travel in the background arrive; whether they have."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    left: list[Any] = []
    for worker, seconds in ((EventsWorker, 10), (APILogWorker, 5)):
        waited: Any = worker.drain_all(timeout=seconds)
        left += waited[1] if waited else []
    return not left


def leave(code: int) -> None:
    """End the process at once if Prefect was given up: what it still has in hand would keep Python from exiting."""
    if _abandoned.is_set():
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError, OSError):
                stream.flush()
        os._exit(code)
