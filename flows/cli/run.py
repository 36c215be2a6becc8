"""`tokenmill run RECIPE`: the line, from a recipe to a registered model."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import UserError, named_by_a_person
from flows.cli.errors import in_words, is_a_bug, paragraph, report_it, shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cluster.stage import Step
    from flows.recipe import Recipe
    from flows.run import Run
    from flows.terminal import Terminal


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's path, or the name of one that ships, such as demo.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key: --set train.lr=3e-4. May be repeated."),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="The last stage to run, such as pack.")] = None,
    require_champion: Annotated[
        bool,
        typer.Option("--require-champion", help="For scripts: end with code 3 if this version isn't the champion."),
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would run and its cost; start nothing.")] = False,
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="A folder or s3://bucket/prefix; the same as --set store=URL.")
    ] = None,
) -> None:
    """Run a recipe: text to a registered model. What is there already is not made again.

    Ctrl-C stops at the next step with a checkpoint; the same command resumes from there.
    """
    overrides = overrides_of(set_, store)
    if plan:
        return show_plan(recipe, overrides, until, require_champion)
    from flows.quiet import log_path, quiet
    from flows.recipe_read import read_recipe

    with shown():
        read = read_recipe(recipe, overrides)
        path = log_path(read.store.url, read.name)
        with named_by_a_person(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    with quiet(path, lasting=True) as console:
        _log()
        code = go(read, until, console, path, require_champion)
    leave(code)
    if code:
        raise typer.Exit(code)
    return None


def leave(code: int) -> None:
    """End the process at once where a Prefect that was given up would keep it."""
    import sys

    if "flows.prefect_mirror" in sys.modules:
        sys.modules["flows.prefect_mirror"].leave(code)


def overrides_of(set_: list[str] | None, store: str | None) -> list[str]:
    return [*(set_ or []), *([f"store={store}"] if store else [])]


def show_plan(recipe: str, overrides: list[str], until: str | None, require_champion: bool = False) -> None:
    from cluster.store.artifact import Artifacts
    from cluster.tracking.place import locate
    from flows import graph, plan
    from flows.quiet import PLAIN_WIDTH
    from flows.recipe_read import read_recipe
    from flows.terminal import Terminal

    with shown():
        read = read_recipe(recipe, overrides)
        steps = graph.until(graph.graph(read), until)
        check_required(require_champion, steps)
        locate(read.store.url, read.tracking.uri)  # a wrong one is an error now, too
        console = Terminal()
        if not console.is_terminal:
            console.width = PLAIN_WIDTH
        plan.show(read, steps, Artifacts(read.store.url), console)


def check_required(require_champion: bool, steps: Sequence[Step]) -> None:
    if require_champion and not any(step.name == "release" for step in steps):
        raise UserError("--require-champion: this run releases nothing; give the recipe [release], and no --until.")


def go(recipe: Recipe, until: str | None, console: Terminal, log: Path, require_champion: bool = False) -> int:
    """The whole run, with all its endings. Returns the exit code."""
    from flows.run import Run

    try:
        with named_by_a_person(recipe.store.url):
            run = Run.open(recipe, until, console, log)
            check_required(require_champion, run.steps)
            if not run.all_cached:
                run.artifacts.store.try_writing()
            if run.needs_ray:
                run.session.check()
    except UserError as error:
        logging.getLogger(__name__).error("opening the run", exc_info=True)
        console.print(f"Error: {paragraph(error)}", soft_wrap=True)
        return 2
    except Exception as error:
        logging.getLogger(__name__).error("opening the run", exc_info=True)
        console.print(f"Error: {in_words(error, recipe.store.url)}", soft_wrap=True)
        console.print(report_it(log) if is_a_bug(error) else f"The details are in {log}", soft_wrap=True)
        return 1
    return ending(run, console, require_champion)


def ending(run: Run, console: Terminal, require_champion: bool = False) -> int:
    """A run that is open, to its exit code: done, failed, stopped by Ctrl-C, or done and not the champion."""
    from flows import last_words

    with run.stop, contextlib.nullcontext() if run.all_cached else last_words.said(run):
        try:
            code = work(run)
        except Exception as error:
            logging.getLogger(__name__).error("the run failed", exc_info=True)
            run.status = "FAILED"
            run.screen.close()
            code = failed(run, error, console)
        finally:
            run.close()
        if run.unshown:
            console.print(run.unshown, markup=False, soft_wrap=True)
        if run.undelivered:
            from flows.commands import again

            console.print(f"{run.undelivered} To deliver them:\n  {again(run)}", soft_wrap=True)
        if code == 0:
            from flows import closing

            closing.show(run, console)
            if require_champion:
                return championship(run, console)
        return code


def championship(run: Run, console: Terminal) -> int:
    """0 if the run's version is the champion now, else 3: of a cached one another may have taken the place since."""
    from cluster.registry.versions import CHAMPION, Registry

    released = run.outcomes["release"].summary.values()
    try:
        version = Registry(run.tracker.place).get(f"models:/{released['name']}/{released['version']}")
    except (UserError, ConnectionError) as error:
        words = f"Error: whether it is the champion can't be known: {paragraph(error)}"
        console.print(words, soft_wrap=True)
        return 1
    if CHAMPION in version.aliases:
        return 0
    console.print(f"Not the champion: {version.uri}. {version.reason}".rstrip(), soft_wrap=True)
    return 3


def work(run: Run) -> int:
    """The line, shown to Prefect; with everything cached and no server to tell, there is nobody to show it to."""
    from flows.prefect_server import configured_api
    from flows.walk import walk

    run.start()
    if not run.all_cached or configured_api() is not None:
        from flows.prefect_mirror import Mirror

        run.watcher = Mirror(run).start()
    ending = walk(run)
    if ending.kind == "completed":
        return 0
    run.screen.close()
    if run.stop() or ending.kind == "stopped":
        return stopped(run, ending.message)
    name, error = next(iter(run.errors.items()), ("", RuntimeError(ending.message)))
    logging.getLogger(__name__).error("%s failed", name, exc_info=error)
    return failed(run, error, run.screen.console, name)


def stopped(run: Run, message: str) -> int:
    from flows.commands import again

    console = run.screen.console
    console.print(f"Stopped. {message}".strip(), soft_wrap=True)
    console.print(f"To resume from there, the same command:\n  {again(run)}", soft_wrap=True)
    return run.stop.exit_code


def failed(run: Run, error: BaseException, console: Terminal, name: str = "") -> int:
    from flows.commands import again

    if name:
        run.screen.fault(name, "failed")
    console.print(f"Error: {in_words(error, run.artifacts.store.url)}", soft_wrap=True)
    if isinstance(error, UserError):
        return 2
    if is_a_bug(error):
        console.print(report_it(run.log), soft_wrap=True)
    elif run.log:
        console.print(f"The details are in {run.log}", soft_wrap=True)
    console.print(f"What is done is kept; the same command resumes:\n  {again(run)}", soft_wrap=True)
    return 1


def _log() -> None:
    """Python's own logging goes to the log file too, which stderr is by now."""
    shape = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=shape, force=True)
    for chatty in ("httpx", "alembic", "mlflow.store.db"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
