"""One run of the line: its recipe, its steps, what is found in the store, and who hears of each step.

    Run.open(recipe) ─▶ run.found: what is there          nothing is started yet
    run.start()                                           starts side by side what the missing steps need
    run.execute(step)       for each step                 finds or makes it; screen and MLflow hear of it
    run.close()             run.outcomes                  what came of each

flows/walk.py calls `execute` for one step after the other; Prefect is shown it from a thread (prefect_mirror.py), but
where everything is cached and there is no server to tell.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.masking import masked
from flows.prefect_server import EmbeddedServer, configured_api
from flows.show import Screen, screen
from flows.stop import StopFlag
from flows.terminal import Terminal
from flows.watch import Watcher

if TYPE_CHECKING:
    from cluster.session import Session
    from cluster.stage import Outcome, Stage, Step, Workspace
    from cluster.store.artifact import Artifact, Artifacts
    from cluster.tracking.tracker import Run as Tracked
    from cluster.tracking.tracker import Tracker
    from flows.recipe import Recipe

_log = logging.getLogger(__name__)


@dataclass
class Run:
    """See the top of this file. Make it by `open`, or from parts (tests)."""

    name: str
    steps: list[Step]
    artifacts: Artifacts
    session: Session
    tracker: Tracker
    stop: StopFlag
    screen: Screen
    source: str = ""  # the recipe as it was named
    until: str | None = None
    recipe: Recipe | None = None
    overrides: tuple[str, ...] = ()
    log: Path | None = None
    found: dict[str, Artifact | None] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    errors: dict[str, BaseException] = field(default_factory=dict)
    runs: dict[str, Tracked] = field(default_factory=dict)
    server: EmbeddedServer | None = None
    begun: float = field(default_factory=time.monotonic)
    status: str = "FINISHED"
    measured: bool = False  # whether the stages' data were looked at with the tokenizer
    undelivered: str = ""  # after `close`: what MLflow has not got, in words
    watcher: Watcher = field(default_factory=Watcher)
    unshown: str = ""  # after `close`: what Prefect has not been shown, in words

    @classmethod
    def open(
        cls,
        recipe: Recipe,
        until: str | None = None,
        console: Terminal | None = None,
        log: Path | None = None,
    ) -> Run:
        """Looks what the store has of a recipe. Starts nothing.

        Raises:
            UserError: an unknown stage, a source that isn't there, data that a stage can't use.
        """
        begun = time.monotonic()
        from cluster.session import Session
        from cluster.store.artifact import Artifacts
        from cluster.tracking.tracker import Tracker, locate
        from flows import graph

        steps = graph.until(graph.graph(recipe), until)
        artifacts = Artifacts(recipe.store.url)
        found = look(steps, artifacts)
        for step in steps:
            if step.stage.check and not found[step.name]:
                step.stage.check(step, None)
        if recipe._begins:
            from cluster.interop.base import tokenizer_of

            with tokenizer_of(recipe._begins) as folder:
                for step in steps:
                    if step.stage.check and not found[step.name]:
                        step.stage.check(step, folder)
        tracking = recipe.tracking
        stop = StopFlag()
        return cls(
            name=recipe.name,
            steps=steps,
            artifacts=artifacts,
            session=Session(recipe.cluster),
            tracker=Tracker(
                locate(recipe.store.url, tracking.uri),
                tracking.experiment or recipe.name,
                tracking.system_seconds if tracking.system_metrics and not all(found.values()) else None,
            ),
            stop=stop,
            screen=screen(console or Terminal(), stop),
            source=recipe.source,
            until=until,
            recipe=recipe,
            overrides=tuple(recipe.overrides),
            log=log,
            found=found,
            begun=begun,
            measured=recipe._begins is not None,
        )

    @property
    def all_cached(self) -> bool:
        return all(self.found.get(s.name) for s in self.steps)

    @property
    def needs_ray(self) -> bool:
        return any(s.stage.uses_ray for s in self.steps if not self.found.get(s.name))

    # -- starting and ending -------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, side by side, what the missing steps need; the imports happen here, one after another.

        (Two threads importing packages that import one another can see them half made.)
        """
        if not self.all_cached:
            if configured_api() is None:
                self.server = EmbeddedServer()
                self.server.start()
            if self.needs_ray:
                import ray  # noqa: F401

                self.session.start()
            import prefect  # noqa: F401

            from cluster.tracking.place import import_quietly

            import_quietly()
        recipe = self.recipe
        self.runs["line"] = self.tracker.start_line(
            self.name,
            recipe.text if recipe else None,
            recipe_text(recipe) if recipe else "",
            {"tokenmill.overrides": " ".join(self.overrides)} if self.overrides else None,
        )

    def api(self) -> None:
        """Wait until the embedded Prefect API answers, where the user has no server, or for a stop."""
        if self.server:
            self.server.wait(self.stop)

    def close(self) -> None:
        """End what was started. Never raises: the run's own outcome is what counts."""
        for end in (
            self.screen.close,
            self._close_watcher,
            self._finish_tracking,
            lambda: self.session.close(),
            lambda: self.server.stop(at_once=bool(self.unshown)) if self.server else None,
        ):
            try:
                end()
            except Exception:
                _log.exception("while ending the run")

    def _close_watcher(self) -> None:
        self.watcher.close()
        self.unshown = self.watcher.unshown

    def _finish_tracking(self) -> None:
        if not self.tracker.finish(self.status, stopping=self.stop):  # type: ignore[arg-type]
            self.undelivered = self.tracker.undelivered()

    # -- one step ------------------------------------------------------------------------------------------

    def step(self, name: str) -> Step:
        return next(s for s in self.steps if s.name == name)

    def execute(self, name: str) -> Outcome:
        """Find or make one step's artifact.

        Raises:
            Stopped: Ctrl-C; whatever the stage raised otherwise.
        """
        from cluster.errors import Stopped
        from cluster.stage import Hooks, Surroundings, run_step

        step = self.step(name)
        self.stop.install()
        if self.stop():
            raise Stopped(f"{name} was not begun.")
        self.errors.pop(name, None)
        self.screen.begin(name)
        hooks = Hooks(self._begin, self._progress(name), self.stop, self.screen.note)
        try:
            self._measure()
            outcome = run_step(step, self.artifacts, Surroundings(self.session, self.name, hooks))
        except BaseException as error:
            stopped = isinstance(error, Stopped | KeyboardInterrupt)
            self.errors[name] = error
            self._finish_tracked(name, "KILLED" if stopped else "FAILED")
            if not stopped:
                _log.error("stage %s failed", name, exc_info=True)
            raise
        self.outcomes[name] = outcome
        if outcome.cached:
            self.tracker.stage(name, outcome.artifact.fingerprint, cached=True, summary=outcome.artifact.summary)
        else:
            self._finish_tracked(name, "FINISHED", outcome)
        try:
            self.screen.end(name, outcome)
        except Exception:  # what is shown never decides what is done
            _log.exception("showing %s", name)
        return outcome

    def _measure(self) -> None:
        """Once there is a tokenizer: do the models' contexts hold what the missing stages will ask of them?"""
        from cluster.store.artifact import Corrupt

        made = [o.artifact for o in self.outcomes.values() if o.artifact.kind == "tokenizer"]
        if self.measured or not made:
            return
        with contextlib.suppress(Corrupt):  # whoever reads it next makes it again
            folder = made[0].path()
            for step in self.steps:
                if step.stage.check and not self.found.get(step.name):
                    step.stage.check(step, folder)
            self.measured = True

    def _begin(self, stage: Stage, ws: Workspace) -> Tracked:
        """Opens the run in MLflow of a step that has to be made; an attempt before this one is closed."""
        self._finish_tracked(ws.step, "FAILED")
        self.runs[ws.step] = self.tracker.stage(
            ws.step,
            ws.fingerprint,
            events_path=ws.out / "events.jsonl",
            params=config_json(ws.config),
            lease=ws.checkpoints.nonce,
            took_over=ws.took_over,
        )
        return self.runs[ws.step]

    def _progress(self, name: str) -> Any:
        def progress(done: float, total: float, text: str) -> None:
            self.screen.progress(done, total, text)
            self.watcher.progress(name, done, total, text)

        return progress

    def _finish_tracked(self, name: str, status: Any, outcome: Outcome | None = None) -> None:
        run = self.runs.get(name)
        if run is None or not run.open:
            return
        run.finish(status, outcome.artifact.summary if outcome else None)


def config_json(config: Any) -> dict[str, Any]:
    return config.model_dump(mode="json") if hasattr(config, "model_dump") else {}


def look(steps: Sequence[Step], artifacts: Artifacts) -> dict[str, Artifact | None]:
    """What the store has of the steps; nothing is started."""
    from cluster.stage import find

    return {step.name: find(step, artifacts) for step in steps}


def recipe_text(recipe: Recipe) -> str:
    """The recipe's files, bases first, and the overrides: what a person needs to run it again. Without secrets."""
    layers = recipe._layers
    if layers is None:
        return ""
    parts = [f"# --- {path.name}\n{path.read_text(encoding='utf-8-sig').strip()}\n" for path in layers.files]
    parts += [f"# --set {text}\n" for text in layers.overrides]
    return masked("\n".join(parts))
