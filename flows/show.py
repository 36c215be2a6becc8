"""What a person sees while the line runs: a bar for the stage at work, a line for each that is done.

On a terminal it is rich's live bar with the rate and the time left; anywhere else (a file, `ray job submit`, CI) plain
lines at a slow rate. The tables at the end are in flows/closing.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from cluster.quantities import count, duration
from flows.terminal import Terminal

if TYPE_CHECKING:
    from cluster.stage import Outcome

PLAIN_SECONDS = 10.0  # between two plain lines of one stage


class Screen:
    """Plain lines. `Bars` is the same for a terminal."""

    def __init__(self, console: Terminal, stopping: Callable[[], bool] = lambda: False):
        self.console, self.stopping = console, stopping
        self._step, self._last, self._first = "", 0.0, None
        self._told_stop = False
        self.listeners: list[Callable[[str], None]] = []  # called with each line

    def begin(self, step: str, text: str = "") -> None:
        self._step, self._last, self._first = step, time.monotonic(), None

    def progress(self, done: float, total: float, text: str) -> None:
        now = time.monotonic()
        if self.stopping() and not self._told_stop:
            self._told_stop = True
            self.note(f"{self._step}: stopping at the next step, with a checkpoint")
        if self._first is None:
            self._first = (now, done)
        if now - self._last < PLAIN_SECONDS:
            return None
        self._last = now
        if not total:  # nothing to count: it waits
            return self.note(f"{self._step}  {text}")
        began, start = self._first
        rate = (done - start) / (now - began) if now > began else 0.0
        left = f"  {duration((total - done) / rate)} left" if rate > 0 and total >= done else ""
        self.note(f"{self._step}  {count(done)}/{count(total)} ({100 * done / total:.0f}%)  {text}{left}")
        return None

    def end(self, step: str, outcome: Outcome) -> None:
        words = outcome.summary.words()
        how = "cached" if outcome.cached else duration(outcome.seconds)
        mark = "=" if outcome.cached else "✓"
        self.line(f"{mark} {step:<14} {how:>8}  {words}", "dim" if outcome.cached else "")

    def fault(self, step: str, text: str) -> None:
        self.line(f"✗ {step:<14} {text}", "red")

    def note(self, text: str) -> None:
        self.line(text, "")

    def line(self, text: str, style: str) -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)
        for listener in self.listeners:
            listener(text)

    def close(self) -> None:
        pass


class _Rate(ProgressColumn):
    """The stage's own words; its speed where they have no rate; and what Ctrl-C has begun."""

    def __init__(self, stopping: Callable[[], bool]):
        super().__init__()
        self.stopping = stopping

    def render(self, task: Task) -> Text:
        if self.stopping():
            return Text("stopping at the next step, with a checkpoint; Ctrl-C again ends at once", style="yellow")
        words = str(task.fields.get("text", ""))
        if task.speed and "/s" not in words:
            words = f"{count(task.speed) if task.speed >= 10 else f'{task.speed:.1f}'}/s  {words}"
        return Text(words)


class _Left(ProgressColumn):
    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text(f"{duration(left)} left" if left is not None and not task.finished else "", style="cyan")


class Bars(Screen):
    """A live bar for the stage at work."""

    def __init__(self, console: Terminal, stopping: Callable[[], bool] = lambda: False):
        super().__init__(console, stopping)
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<14}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            _Left(),
            _Rate(stopping),
            console=console,
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
            speed_estimate_period=60,
        )
        self._task: Any = None
        self._bars.start()

    def begin(self, step: str, text: str = "") -> None:
        self._clear()
        self._task = self._bars.add_task(step, total=None, text=text)

    def progress(self, done: float, total: float, text: str) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total or None, text=text)

    def end(self, step: str, outcome: Outcome) -> None:
        self._clear()
        super().end(step, outcome)

    def fault(self, step: str, text: str) -> None:
        self._clear()
        super().fault(step, text)

    def close(self) -> None:
        self._clear()
        self._bars.stop()

    def _clear(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None


def screen(console: Terminal, stopping: Callable[[], bool] = lambda: False) -> Screen:
    return (Bars if console.is_terminal else Screen)(console, stopping)
