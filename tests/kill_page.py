"""The kill matrix as a page: docs/kill-matrix.md, from the cells that are there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from tests.kill_cell import Cell
from tests.kill_place import ROOT, WORDS
from tests.kill_sweep import SIGNALS
from tests.whole_line import RECIPE

STAGES = (
    "corpus", "filter", "tokenizer", "pack", "pretrain", "evaluate-base", "instruct", "rlhf", "evaluate", "release",
)  # fmt: skip
PAGE = ROOT / "docs" / "kill-matrix.md"
DID = {"KILL": "kill -9", "TERM": "SIGTERM", "STOP": "SIGSTOP, 30 s"}
Cells = Mapping[tuple[str, str, str], Cell]


def is_wrong(cell: Cell) -> bool:
    """Not equal, without a sentence, or with processes that outlive it."""
    return cell.equal is not None and (not cell.equal or not cell.said or bool(cell.left))


def page(cells: Cells, at_once: int, date: str) -> str:
    """All of it.

    Args:
        at_once: how many cells ran side by side at most.
        date: of the newest of them.
    """
    tried = [cell for cell in cells.values() if cell.equal is not None]
    wrong = sum(map(is_wrong, tried))
    total = len(STAGES) * len(WORDS) * len(SIGNALS)
    recipe = RECIPE.relative_to(ROOT)
    parts = [
        "# What a run does when something of it dies\n",
        f"Made by `make kill-matrix`, from {recipe} with one training worker. In each stage something is killed\n"
        "(`kill -9`), asked to end (SIGTERM) or held (SIGSTOP; SIGCONT after 30 seconds) while the stage is at work.\n"
        "A run that ends by it is followed by the same command, a server that was killed or ended is started again\n"
        "before that; at the end of all the same command once more finds every artifact. One line of ten stages gives\n"
        "the cells of one victim and one signal; of Prefect's API and MLflow's server, which a run does without until\n"
        "its end, each stage has a run of its own. *Lost*: seconds from the signal until the stage was done, beyond\n"
        "those of a stage with nothing in its way. *Equal*: every file of every artifact has the undisturbed run's\n"
        "checksum; JSON without times, rates and what a resume says of itself.\n",
        f"{len(cells)} of {total} cells: {len(tried)} tried, {len(cells) - len(tried)} without such a process, "
        f"**{wrong} wrong** (not equal, no\nsentence, or a process left behind). {date}, {os.cpu_count()} cores, up to "
        f"{at_once} lines side by side on a machine that had\nother work: so seconds are of a loaded machine, "
        "and tens of them are noise.\n",
        *overview(cells),
    ]
    for stage in STAGES:
        rows = [cells.get((stage, victim, name)) for victim in WORDS for name in SIGNALS]
        if not any(rows):
            continue
        parts.append(f"## {stage}\n\n| what | how | what the screen said | lost | equal |\n|---|---|---|---|---|")
        parts += [row(cell) for cell in rows if cell]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def overview(cells: Cells) -> list[str]:
    """A line a stage: the seconds lost by kill -9 / SIGTERM / SIGSTOP of each victim."""
    lines = [
        "Seconds lost after kill -9 / SIGTERM / SIGSTOP for 30 s; all equal but what is in bold; —: the stage has no\n"
        "such process; ?: not tried yet.\n",
        f"| stage | {' | '.join(WORDS)} |",
        "|---" * (len(WORDS) + 1) + "|",
    ]
    for stage in STAGES:
        of_stage = [" / ".join(short(cells.get((stage, victim, name))) for name in SIGNALS) for victim in WORDS]
        lines.append(f"| {stage} | {' | '.join('—' if set(one) <= set('— /') else one for one in of_stage)} |")
    return [*lines, ""]


def short(cell: Cell | None) -> str:
    if cell is None:
        return "?"
    if cell.equal is None:
        return "—"
    seconds = f"{max(cell.lost, 0.0):.0f}"
    return f"**{seconds} wrong**" if is_wrong(cell) else seconds


def row(cell: Cell) -> str:
    equal = {True: "yes", None: "—", False: f"**no**: {', '.join([*cell.differs, cell.again]).strip(', ')}"}[cell.equal]
    left = f" (**left behind**: {', '.join(cell.left)})" if cell.left else ""
    lost = f"{max(cell.lost, 0.0):.0f} s" if cell.equal is not None else ""
    said = re.sub(r"\S*/runs/[^/\s]+/", "…/", cell.said or "**nothing**").replace("|", "\\|")
    return f"| {WORDS[cell.victim]} | {DID[cell.signal]} | {said}{left} | {lost} | {equal} |"
