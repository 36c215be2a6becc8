"""Stages: config + inputs -> fingerprint -> artifact, run only where the artifact is missing.

    fingerprint = SHA-256 of {stage, version, identity of the config, inputs' fingerprints, digests of outside
    data}

A `Stage` is what can be done, a `Step` is one use of it in a run's graph. `run_step` finds the step's artifact or makes
it; a step whose input is missing or damaged has that input made first, so a run always resumes from what is whole in
the store.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import BaseModel, TypeAdapter

from cluster.cost import Cost, Machine
from cluster.errors import Stopped
from cluster.events import EventLog, plain_json
from cluster.identity import canonical_json, differences, how, identity
from cluster.masking import masked_all
from cluster.provenance import code_version, package_versions
from cluster.report import Block
from cluster.session import Session
from cluster.store.artifact import Artifact, Artifacts, Corrupt, InputRef, Manifest
from cluster.store.attempts import Attempt
from cluster.store.checkpoints import Checkpoints
from cluster.store.lease import lease
from cluster.store.manifest import WRONG, in_short
from cluster.store.source import digest_source
from cluster.store.workplace import build_folder

Progress = Callable[[float, float, str], None]
EVENTS = "events.jsonl"

__all__ = [
    "Hooks", "Outcome", "Stage", "Step", "Summary", "Surroundings", "Workspace", "digest_source", "explain", "find",
    "fingerprint", "how", "identity", "previous", "run_step",
]  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """What a stage says of its result. A stage's own class has a field for each thing that it says.

    It is kept in the artifact's manifest as plain JSON (`values`) and read back from it (`read`), also from one that an
    older version wrote: what it has and the class has not is left out, what it lacks has the field's default.
    """

    def values(self) -> dict[str, Any]:
        """As plain JSON, for the manifest; its numbers are metrics of the stage's run in MLflow."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """The summary that a manifest holds. Raises ValueError for one with a value of another kind than its field."""
        return _adapter(cls).validate_python({f.name: values[f.name] for f in fields(cls) if f.name in values})

    def words(self) -> str:
        """The result in a few words, for the screen and the closing table."""
        return ""

    def report(self, artifact: Artifact) -> Sequence[Block]:
        """The result on a page."""
        return ()

    def closing(self) -> Sequence[str]:
        """Lines to end the whole run with."""
        return ()


@functools.cache
def _adapter(kind: type[Summary]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@dataclass(frozen=True)
class Stage:
    """Something that can be done. A changed default or behaviour bumps `version`.

    Args:
        run: writes files into workspace.out and returns a `summary`.
        summary: the class of what it says of its result.
        external: config -> {name: digest} of data outside the store, see cluster.store.source.digest_source.
        still_valid: whether an artifact found in the store still holds, for stages with an effect elsewhere.
        uses_ray: Ray is up when `run` is called.
        cost: what a step of it would cost on a machine, for --plan; None: what it took the last time.
        gist: what a config asks for, in a few words, for --plan.
        check: (step, the tokenizer's folder) raises UserError for what its data can't be used for. Called while the
            step is missing, before anything starts, with None; and once there is a tokenizer, before training.
    """

    name: str
    kind: str
    version: int
    config: type
    run: Callable[[Workspace], Summary]
    summary: type[Summary] = Summary
    external: Callable[[Any], dict[str, str]] | None = None
    still_valid: Callable[[Artifact, Any], bool] | None = None
    uses_ray: bool = True
    cost: Callable[[Step, Machine], Cost] | None = None
    gist: Callable[[Any], str] = lambda config: ""
    check: Callable[[Step, Path | None], None] | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One node of a run's graph: a stage, its config, and the steps whose artifacts it reads, by role."""

    name: str
    stage: Stage
    config: Any
    inputs: dict[str, Step]

    def __post_init__(self) -> None:
        if not isinstance(self.config, self.stage.config):
            wanted = self.stage.config.__name__
            raise ValueError(f"Step {self.name!r} needs a {wanted}, not a {type(self.config).__name__}.")


class Tracked(Protocol):
    """A stage's run in MLflow, as far as a stage needs to know it."""

    def wait_run_id(self, timeout: float = 30.0) -> str:
        """Its id, or "" if MLflow doesn't answer in time."""
        ...


@dataclass(frozen=True)
class Hooks:
    """Who hears of a step that is being made, and who may stop it."""

    begin: Callable[[Stage, Workspace], Tracked | None] = lambda stage, workspace: None  # before the stage runs
    progress: Progress = lambda done, total, text: None
    stopping: Callable[[], bool] = lambda: False  # True after Ctrl-C: write a checkpoint, then raise Stopped
    note: Callable[[str], None] = lambda text: None  # a line for whoever watches: what was lost, and is gone on without


@dataclass(frozen=True)
class Surroundings:
    """What a run gives to each of its steps."""

    session: Session = field(default_factory=Session)  # the one owner of Ray
    recipe: str = ""  # its name
    hooks: Hooks = Hooks()


@dataclass
class Workspace:
    """All that a stage's function may touch."""

    step: str
    fingerprint: str
    config: Any
    inputs: dict[str, Artifact]
    out: Path  # becomes the artifact
    artifacts: Artifacts
    checkpoints: Checkpoints
    events: EventLog  # out/events.jsonl
    session: Session  # Ray is up if the stage says that it uses Ray
    recipe: str
    hooks: Hooks
    attempt: Attempt  # what it costs: a stage that uses several devices says so there
    took_over: str = ""  # the lease of a dead run that was making the same; its own is `checkpoints.nonce`
    tracked: Tracked | None = None

    @property
    def progress(self) -> Progress:
        """(done, total, text) for whoever watches."""
        return self.hooks.progress

    @property
    def note(self) -> Callable[[str], None]:
        """A line for whoever watches."""
        return self.hooks.note

    @property
    def stopping(self) -> Callable[[], bool]:
        """Whether to write a checkpoint and raise Stopped."""
        return self.hooks.stopping


@dataclass(frozen=True)
class Outcome:
    """What came of a step: its artifact, what it says of itself, whether it was there already, and the seconds."""

    artifact: Artifact
    summary: Summary
    cached: bool
    seconds: float


_external: weakref.WeakKeyDictionary[Step, dict[str, str]] = weakref.WeakKeyDictionary()
_external_lock = threading.Lock()


def external(step: Step) -> dict[str, str]:
    """Digests of the step's data outside the store, taken once per step object: a run sees one state of them."""
    with _external_lock:
        if step not in _external:
            _external[step] = step.stage.external(step.config) if step.stage.external else {}
        return _external[step]


def fingerprint(step: Step) -> str:
    """20 hex digits that name what the step makes, wherever and by however many workers it is made."""
    return _fingerprint(step, {})


def _fingerprint(step: Step, known: dict[Step, str]) -> str:
    if step not in known:
        content = {
            "stage": step.stage.name,
            "version": step.stage.version,
            "config": identity(step.config),
            "inputs": {role: [s.stage.kind, _fingerprint(s, known)] for role, s in step.inputs.items()},
            "external": external(step),
        }
        known[step] = hashlib.sha256(canonical_json(content).encode()).hexdigest()[:20]
    return known[step]


def explain(step: Step, previous: Manifest) -> list[str]:
    """Why the step's fingerprint isn't that of `previous`, one reason a line; empty where it is the same."""
    reasons: list[str] = []
    if previous.stage_version != step.stage.version or previous.stage != step.stage.name:
        now = f"{step.stage.name} version {step.stage.version}"
        reasons.append(f"stage: {previous.stage} version {previous.stage_version} -> {now}")
    reasons += differences(previous.identity, json.loads(canonical_json(identity(step.config))))
    inputs = {role: fingerprint(s) for role, s in step.inputs.items()}
    before = {role: ref.fingerprint for role, ref in previous.inputs.items()}
    reasons += [f"input {d}" for d in differences(before, inputs)]
    reasons += [f"source {d}" for d in differences(previous.external, external(step))]
    return reasons


def previous(step: Step, artifacts: Artifacts) -> Manifest | None:
    """The manifest to compare with: the newest of this stage and step name, None if there is none."""
    made = [m for m in artifacts.manifests(step.stage.kind) if (m.stage, m.name) == (step.stage.name, step.name)]
    return max(made, key=lambda m: m.created, default=None)


def find(step: Step, artifacts: Artifacts) -> Artifact | None:
    """The step's artifact, if it is whole and still holds."""
    found = _whole(step, artifacts)
    return found if found and _holds(step, found) else None


def _whole(step: Step, artifacts: Artifacts) -> Artifact | None:
    """The step's artifact; one whose summary isn't this stage's is damaged, and set aside as what is torn is."""
    found = artifacts.find(step.stage.kind, fingerprint(step))
    if found and (problem := unread(step, found.manifest)):
        artifacts.set_aside(found.kind, found.fingerprint, problem)
        return None
    return found


def unread(step: Step, manifest: Manifest) -> str:
    """Why the summary in an artifact's manifest is none of this stage's; "" where it is one."""
    try:
        step.stage.summary.read(manifest.summary)
    except WRONG as error:
        return f"its summary can't be read: {in_short(error)}"
    return ""


def _holds(step: Step, found: Artifact) -> bool:
    return step.stage.still_valid is None or step.stage.still_valid(found, step.config)


def run_step(
    step: Step, artifacts: Artifacts, surroundings: Surroundings | None = None, *, force: bool = False
) -> Outcome:
    """Find the step's artifact, or make and publish it.

    Args:
        surroundings: default: a session of its own, and nobody who watches.
        force: make it also where it is there; the old one is set aside once the new one is ready.
    Raises:
        Stopped: `hooks.stopping` turned true and the stage ended with a checkpoint.
    """
    begun = time.perf_counter()
    surroundings = surroundings or Surroundings()

    def outcome(artifact: Artifact, cached: bool) -> Outcome:
        return Outcome(artifact, step.stage.summary.read(artifact.summary), cached, time.perf_counter() - begun)

    there = _whole(step, artifacts)
    if there and not force and _holds(step, there):
        return outcome(there, cached=True)
    for last in (False, True):
        inputs = {role: _input(source, artifacts, surroundings) for role, source in step.inputs.items()}
        try:
            return outcome(*_make_once(step, inputs, artifacts, surroundings, force))
        except Corrupt:  # an input, found out by a reader, who has set it aside: made again, once
            if last:
                raise
    raise AssertionError("unreachable: the last round returns or raises")


def _make_once(
    step: Step, inputs: dict[str, Artifact], artifacts: Artifacts, surroundings: Surroundings, force: bool
) -> tuple[Artifact, bool]:
    """Make the step while no other run does: its artifact, and whether another run has made it meanwhile."""
    hooks, mark = surroundings.hooks, fingerprint(step)
    while True:
        with lease(artifacts.store, mark, step.name, hooks.stopping, lambda text: hooks.progress(0, 0, text)) as held:
            there = _whole(step, artifacts)
            if there and not force and _holds(step, there):
                return there, True
            checkpoints = artifacts.checkpoints(mark, held.nonce)
            if force:
                checkpoints.clear()  # from the start, not from where another had come
                Attempt(artifacts.store, mark, held.nonce).clear()
            ours = replace(hooks, stopping=lambda: hooks.stopping() or held.lost())
            try:
                around = replace(surroundings, hooks=ours)
                return _make(step, inputs, artifacts, around, there, checkpoints, held.took_over), False
            except Stopped:
                if hooks.stopping() or not held.lost():
                    raise


def _make(
    step: Step,
    inputs: dict[str, Artifact],
    artifacts: Artifacts,
    surroundings: Surroundings,
    replaced: Artifact | None,
    checkpoints: Checkpoints,
    took_over: str = "",
) -> Artifact:
    """Run the stage and publish; `replaced` is what is there already and is not to be used."""
    mark, stage, hooks = fingerprint(step), step.stage, surroundings.hooks
    with build_folder(artifacts.store, mark) as out:
        workspace = Workspace(
            step=step.name,
            fingerprint=mark,
            config=step.config,
            inputs=inputs,
            out=out,
            artifacts=artifacts,
            checkpoints=checkpoints,
            events=EventLog(out / EVENTS),
            session=surroundings.session,
            recipe=surroundings.recipe,
            hooks=hooks,
            attempt=Attempt(artifacts.store, mark, checkpoints.nonce),
            took_over=took_over,
        )
        workspace.tracked = hooks.begin(stage, workspace)
        if stage.uses_ray and surroundings.session.ensure(hooks.stopping, hooks.note) is None:
            raise Stopped(f"{step.name} stopped before it began.")
        with workspace.attempt, surroundings.session.during() if stage.uses_ray else contextlib.nullcontext():
            summary = stage.run(workspace)
            if stage.uses_ray and (lost := surroundings.session.lost_workers()):
                hooks.note(f"{step.name}: a Ray worker was lost ({'; '.join(lost)}). Its work was done again.")
        wall, devices = workspace.attempt.total()
        if not isinstance(summary, stage.summary):
            wanted = stage.summary.__name__
            raise TypeError(f"Stage {stage.name!r} returned a {type(summary).__name__}: its summary is a {wanted}.")
        values = masked_all(plain_json(summary.values()))
        manifest = Manifest(
            kind=stage.kind,
            stage=stage.name,
            stage_version=stage.version,
            fingerprint=mark,
            name=step.name,
            config=_config_json(step.config),
            identity=identity(step.config),
            inputs={r: InputRef(kind=a.kind, fingerprint=a.fingerprint) for r, a in inputs.items()},
            external=external(step),
            summary=values,
            code_version=code_version(),
            packages=package_versions(),
            wall_seconds=round(wall, 3),
            device_seconds=round(devices, 3),
        )
        if replaced and artifacts.manifest(stage.kind, mark) == replaced.manifest:
            artifacts.set_aside(stage.kind, mark, "it was made again, by force or because it no longer held")
        artifact = artifacts.publish(manifest, out)
        workspace.attempt.clear()
        checkpoints.clear()
    return artifact


def _input(step: Step, artifacts: Artifacts, surroundings: Surroundings) -> Artifact:
    """The input's artifact, made (again) where it isn't there or is damaged."""
    for _ in range(2):
        artifact = run_step(step, artifacts, surroundings).artifact
        if artifacts.store.folder(artifact.kind) is None:
            return artifact  # S3: checked by whoever downloads it, which need not be this machine
        with contextlib.suppress(Corrupt):  # set aside: the next round makes it
            artifact.path()
            return artifact
    raise Corrupt(f"{step.name}: the artifact was damaged again right after it was made. Is the disk failing?")


def _config_json(config: Any) -> dict[str, Any]:
    if isinstance(config, BaseModel):
        return masked_all(config.model_dump(mode="json"))
    from pydantic import TypeAdapter

    return masked_all(TypeAdapter(type(config)).dump_python(config, mode="json"))
