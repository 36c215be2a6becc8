"""The line as a Prefect flow: from raw text to a registered model, one task a stage.

    sources ─ corpus ─ filter ─ tokenizer ─ pack ─ pretrain ─ evaluate ─ instruct ─ rlhf ─ evaluate ─ release

Each arrow is an artifact in the store (flows/graph.py has them all). The store decides what is to be done: a task whose
artifact is there ends in the state Cached. Retries are for infrastructure faults alone. Stages run in the main thread,
so that signals reach them.
"""

from __future__ import annotations

from typing import Any

from prefect import Flow, Task, flow
from prefect.cache_policies import NO_CACHE
from prefect.states import Cancelled, Completed, Failed, State

from cluster.errors import Stopped
from flows import prefect_logs, prefect_page
from flows.faults import in_a_line, is_infrastructure_fault
from flows.run import Run

RETRY_SECONDS = [5.0, 30.0]


@flow(name="tokenmill", persist_result=False, validate_parameters=True)
def tokenmill(recipe: str = "demo", overrides: list[str] | None = None, until: str | None = None) -> State:
    """Text to a registered model, as a recipe says.

    Args:
        recipe: a recipe's path, or the name of one that ships.
        overrides: `key=value`, as with --set.
        until: the last stage to run.
    """
    from flows.recipe_read import read_recipe

    run = Run.open(read_recipe(recipe, overrides or ()), until)
    with run.stop:
        try:
            run.start()
            return walk(run)
        finally:
            run.close()


def orchestrate(run: Run) -> State:
    """The same flow for a run that is open and started, on the configured Prefect API or on the embedded one.

    Its parameters are those that the run was opened with: run again from the UI, they give the same.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import temporary_settings

    run.api()
    if run.stop():
        run.status = "KILLED"
        return Cancelled(name="Stopped", message="before the first stage")

    def opened(recipe: str, overrides: list[str], until: str | None) -> State:
        return walk(run)

    line = Flow(opened, name=tokenmill.name, flow_run_name=run.name, persist_result=False)
    with temporary_settings(run.server.settings() if run.server else {}):
        state: Any = line(run.source, list(run.overrides), run.until, return_state=True)
        # States and logs travel in the background: let the last ones arrive before the API is ended.
        EventsWorker.drain_all(timeout=10)
        APILogWorker.drain_all(timeout=5)
        return state


def walk(run: Run) -> State:
    """The steps in order; the first that fails or is stopped ends the line."""
    with prefect_logs.attached(run) as logs:
        for step in run.steps:
            state: Any = stage_task(run, step.name, logs)(return_state=True)
            if state.is_cancelled():
                run.status = "KILLED"
                return Cancelled(name="Stopped", message=f"{step.name}: {state.message}")
            if not state.is_completed():
                run.status = "FAILED"
                error = state.result(raise_on_failure=False)
                if isinstance(error, BaseException):
                    run.errors.setdefault(step.name, error)
                logs.error(f"{step.name}: {error}")
                return Failed(message=f"{step.name}: {error}")
        for outcome in run.outcomes.values():
            for line in outcome.summary.closing():
                logs.say(line)
        prefect_page.closing(run)
    return Completed(message=f"{len(run.steps)} stages, {sum(o.cached for o in run.outcomes.values())} cached")


def stage_task(run: Run, name: str, logs: prefect_logs.RunLogs) -> Task:
    """One step of a run as a task."""

    def stage() -> State:
        shown = prefect_page.progress(run, name)
        try:
            with logs.entered():
                outcome = run.execute(name)
        except Stopped as stopped:
            return Cancelled(name="Stopped", message=str(stopped))
        finally:
            shown.close()
        prefect_page.report(run, name)
        words = outcome.artifact.manifest.key
        return Completed(name="Cached", message=words) if outcome.cached else Completed(message=words)

    def worth_a_retry(_task: Any, _task_run: Any, state: State) -> bool:
        error = None if run.stop() else state.result(raise_on_failure=False)
        if not isinstance(error, BaseException) or not is_infrastructure_fault(error):
            return False
        run.screen.fault(name, f"{in_a_line(error)} It is tried again.")
        return True

    return Task(
        stage,
        name=name,
        task_run_name=name,
        persist_result=False,
        cache_policy=NO_CACHE,
        retries=len(RETRY_SECONDS),
        retry_delay_seconds=RETRY_SECONDS,
        retry_condition_fn=worth_a_retry,
    )
