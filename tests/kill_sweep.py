"""The line, with something of it killed, ended or held in each of some stages: the cells of one victim and one signal.

    store before the first stage ─▶ run ─▶ stage at work: signal ─▶ it goes on ───────────────▶ the next stage's turn
                                     ▲                          └─▶ it ends ─▶ the same command ┐
                                     └──────────────────────────────────────────────────────────┘
    at the end: the same command once more, which finds all of it; each artifact against the undisturbed run's

Where a run says only at its end what it could not do (Prefect's API, MLflow's server), it ends with the stage, and the
command for the next stage is the one after it.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster.store.artifact import Manifest
from tests.kill_cell import Cell, differences, sentence
from tests.kill_place import IS, SERVICES, WORDS, Place

HELD_SECONDS = 30.0
LIMIT = 600.0  # seconds that one run may say nothing new, on a machine that has other work
GONE_SECONDS = 30.0  # which what the run has started may take to end after it
POLL_SECONDS = 0.02
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "STOP": signal.SIGSTOP}
TRAININGS = ("pretrain", "instruct", "rlhf")
OF_RAY = ("rank", "raylet", "gcs")
SAID_AT_THE_END = ("prefect", "mlflow")  # of which a run says at its end what they have not got
DONE = re.compile(r"[✓=] (\S+) ")


@dataclass
class Screen:
    """What a run says, each line with its time."""

    process: subprocess.Popen[str]
    lines: list[tuple[float, str]] = field(default_factory=list)
    ended: float = 0.0  # when `end` saw it

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    def done(self, stage: str) -> float | None:
        """When a stage was said to be done."""
        found = ((when, DONE.match(line)) for when, line in list(self.lines))
        return next((when for when, match in found if match and match[1] == stage), None)

    def wait(self, done: Callable[[], bool] = lambda: False) -> bool:
        """Until `done()`, which is returned, or the process has ended; one that is silent for too long is killed."""
        begun = time.monotonic()
        while self.process.poll() is None and not done():
            if time.monotonic() - max(begun, self.lines[-1][0] if self.lines else 0.0) > LIMIT:
                self.lines.append((time.monotonic(), f"Error: it said nothing for {LIMIT:.0f} s and was killed."))
                _end_all([*tree(self.process), psutil.Process(self.process.pid)])
            time.sleep(POLL_SECONDS)
        return done()

    def end(self) -> int:
        """The exit code, once the process has ended and all is read."""
        self.wait()
        code = self.process.wait()
        self.ended = self.ended or time.monotonic()
        self._thread.join(GONE_SECONDS)
        return code

    def text(self, since: float = 0.0) -> str:
        return "\n".join(line for when, line in list(self.lines) if when >= since)


class Sweep:
    """Cells of one victim and one signal, in the order of their stages.

    Args:
        manifests: of all steps of the undisturbed line, in their order.
        undisturbed: seconds from a stage's being at work to its end, with nothing in its way; "end": the run's own end.
        api: a Prefect server for runs that needn't have their own.
    """

    def __init__(
        self,
        folder: Path,
        whole: Path,
        manifests: list[Manifest],
        victim: str,
        how: str,
        undisturbed: dict[str, float],
        api: str = "",
    ):
        self.folder, self.whole, self.manifests = folder, whole, manifests
        self.victim, self.how, self.undisturbed, self.api = victim, how, undisturbed, api
        self.names = [m.name for m in manifests]
        self._screens: list[Screen] = []
        self._struck: list[tuple[Cell, Screen, float]] = []
        self._keep: Callable[[Cell], None] = lambda cell: None
        self._families: list[tuple[Cell, list[psutil.Process]]] = []  # of the run under way

    def run(self, stages: Iterable[str], keep: Callable[[Cell], None] = lambda cell: None) -> list[Cell]:
        """A cell for each of the stages; `keep` is called with each as soon as its artifact is compared.

        Raises:
            RuntimeError: a run ended by itself before it came to a stage.
        """
        wanted = sorted(stages, key=self.names.index)
        cells = [Cell(stage, self.victim, self.how) for stage in wanted]
        self._keep = keep
        before = self.manifests[: self.names.index(wanted[0])]
        self.place = Place(self.folder, self.whole, before, self.victim, self.api)
        with_its_stage = self.victim in SAID_AT_THE_END and self.how != "STOP"
        try:
            screen = None
            for cell in cells:
                until = cell.stage if with_its_stage else wanted[-1]
                if screen and with_its_stage:
                    self._end(screen)
                if screen is None or screen.process.poll() is not None:
                    screen = self._start(until)
                screen = self._cell(cell, screen, until)
            if screen:
                self._end(screen)
            last = self._start(wanted[-1])
            if code := self._end(last):
                cells[-1].again = sentence(last.text(), code) or "failed without a word"
            self._say()
            for cell in cells:  # a later stage, or what was left of a process, may have changed something
                self._compare(cell)
        finally:
            (self.folder / "screens.txt").write_text("\n---\n".join(s.text() for s in self._screens), encoding="utf-8")
            for screen in self._screens:
                _end_all(tree(screen.process))
                with contextlib.suppress(OSError):
                    screen.process.kill()
            self.place.stop()
        return cells

    def _compare(self, cell: Cell) -> None:
        if cell.equal is not None:
            cell.differs = differences(self.place.artifacts(), self.whole, [self._manifest(cell.stage)])
            cell.equal = not cell.differs and not cell.again
        if cell.said or cell.equal is not None:
            self._keep(cell)

    def _say(self) -> None:
        """Give the last cell its sentence: out of what the run has said since its signal, until the next one."""
        for cell, screen, struck in self._struck:
            cell.said = sentence(screen.text(struck), cell.code or 0)
            self._compare(cell)
        self._struck = []

    def _start(self, until: str) -> Screen:
        self._screens.append(Screen(self.place.run(until)))
        return self._screens[-1]

    def _end(self, screen: Screen) -> int:
        """A run's exit code; whatever it leaves behind is entered in the cells whose processes these were."""
        code = screen.end()
        for cell, family in self._families:
            cell.left = _left([p for p in family if p.pid != screen.process.pid])
        self._families = []
        return code

    def _cell(self, cell: Cell, screen: Screen, until: str) -> Screen:
        """Signal the victims, see the stage to its end; returns the run that is or was at it last."""
        victims = at_work(self.place, self._manifest(cell.stage), screen)
        if not victims:
            if screen.done(cell.stage) is None:
                code = self._end(screen)
                raise RuntimeError(f"{cell.name}: the run ended with {code} before the stage:\n{screen.text()}")
            if cell.stage == "release" and self.victim in OF_RAY:  # in others it ended too soon to be struck
                cell.said = f"Nothing: {WORDS[self.victim]} has no process in this stage."
            return screen
        self._say()
        struck, last = time.monotonic(), cell.stage == until
        self._families.append((cell, [p for p in tree(screen.process) if p not in victims]))
        _signal(victims, self.how)
        if self.how == "STOP":
            _hold(victims, screen.process)
        done = screen.wait(lambda: not last and screen.done(cell.stage) is not None)
        cell.code = None if done else self._end(screen)
        spent = (screen.done(cell.stage) if done else None) or screen.ended
        cell.equal = True
        self._struck.append((cell, screen, struck))
        cell.lost = spent - struck - self.undisturbed[cell.stage]
        if done:
            return screen
        if self.victim in SERVICES and self.how != "STOP":
            self.place.stop()
            self.place.start()
        if not cell.code:
            cell.lost -= self.undisturbed["end"]
            return screen
        again, begun = self._start(until), time.monotonic()
        if not again.wait(lambda: again.done(cell.stage) is not None):
            code = self._end(again)
            if again.done(cell.stage) is None:
                cell.again = sentence(again.text(), code) or f"failed with code {code}"
        cell.lost += (again.done(cell.stage) or time.monotonic()) - begun
        return again

    def _manifest(self, stage: str) -> Manifest:
        return self.manifests[self.names.index(stage)]


def undisturbed(place: Place, manifests: list[Manifest]) -> dict[str, float]:
    """Of a run with nothing in its way: seconds from each stage's being at work to its end, and from that to its own.

    Raises:
        RuntimeError: it failed.
    """
    screen, seconds = Screen(place.run(manifests[-1].name)), {}
    for manifest in manifests:
        at_work(place, manifest, screen)
        begun = time.monotonic()
        while (done := screen.done(manifest.name)) is None and screen.process.poll() is None:
            time.sleep(POLL_SECONDS)
        seconds[manifest.name] = max((done or begun) - begun, 0.0)
    if screen.end():
        raise RuntimeError(screen.text())
    return {**seconds, "end": time.monotonic() - (screen.done(manifests[-1].name) or 0.0)}


def at_work(place: Place, manifest: Manifest, screen: Screen) -> list[psutil.Process]:
    """The victim's processes once the stage is really at work; none if it ended before there were any."""
    folder, driver = place.work / manifest.fingerprint, psutil.Process(screen.process.pid)
    begun = False
    while screen.process.poll() is None and screen.done(manifest.name) is None:
        with contextlib.suppress(psutil.Error, FileNotFoundError):
            begun = begun or has_begun(folder, manifest.name, driver)
            if begun and (found := place.victims(driver)):
                return found
        time.sleep(POLL_SECONDS)
    return []


def has_begun(folder: Path, stage: str, driver: psutil.Process) -> bool:
    """Whether a stage does what it is for: a training has made a step, a data stage reads or writes."""
    if stage in TRAININGS:
        events = [*folder.glob("out-*/events.jsonl"), *folder.glob("checkpoints/*/manifest.json")]
        return any(file.stat().st_size for file in events)
    if not any(folder.glob("out-*/")):
        return False
    if stage == "release" or any(file.name != "events.jsonl" for file in folder.glob("out-*/*")):
        return True
    return any(IS["rank"](child.name(), " ".join(child.cmdline())) for child in driver.children(recursive=True))


def _signal(processes: list[psutil.Process], how: str) -> None:
    for one in processes:
        with contextlib.suppress(psutil.Error):
            one.send_signal(SIGNALS[how])


def _hold(processes: list[psutil.Process], run: subprocess.Popen[str]) -> None:
    """For so many seconds, or until the run has ended without them."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.wait(HELD_SECONDS)
    for one in processes:
        with contextlib.suppress(psutil.Error):
            one.send_signal(signal.SIGCONT)


def tree(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []


def _left(family: list[psutil.Process]) -> list[str]:
    """What outlives the run for long, in words; it is ended."""
    end = time.monotonic() + GONE_SECONDS
    while (alive := [one for one in family if _lives(one)]) and time.monotonic() < end:
        time.sleep(0.1)
    words = [_name(one) for one in alive]
    _end_all(alive)
    return words


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _end_all(processes: list[psutil.Process]) -> None:
    for one in processes:
        with contextlib.suppress(psutil.Error):
            one.kill()


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.name()} {process.pid}"
    return str(process.pid)
