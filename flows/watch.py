"""Who shows a run while it works: told what happens, at once and without a wait (prefect_mirror.py is one)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Ending:
    """How the line ended, in a word and in a person's words."""

    kind: Literal["completed", "stopped", "failed"]
    message: str = ""


class Watcher:
    """Is told what happens to each step. Its methods return at once, but for `close`, and raise nothing."""

    unshown = ""  # after `close`: what could not be shown, in words

    def begun(self, step: str) -> None:
        """The first attempt at a step begins."""

    def ended(self, step: str, error: BaseException | None, again: bool) -> None:
        """An attempt ended, `again`: another follows. Without an error `run.outcomes` has what came of it."""

    def progress(self, step: str, done: float, total: float, text: str) -> None:
        """How far the step at work is."""

    def over(self, ending: Ending) -> None:
        """The line has ended."""

    def close(self) -> None:
        """End; within a time what is not shown yet may still be."""
