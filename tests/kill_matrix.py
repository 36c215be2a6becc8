"""The kill matrix: each process of a run is killed, ended and held in each stage of the tiny line; docs/kill-matrix.md.

    python -m tests.kill_matrix                                     all cells that aren't there yet
    python -m tests.kill_matrix --stage pretrain --victim prefect mlflow --signal KILL STOP --minutes 20
    python -m tests.kill_matrix --again --stage corpus              cells of a stage anew
    python -m tests.kill_matrix --page                              the page alone, from the cells that are there

The line runs once undisturbed; a cell begins with a copy of its store up to the stage, so it runs that stage alone.
What is done is kept in --folder, a file a cell: an interrupted matrix is gone on with, and two may run side by side.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

from cluster.quantities import duration
from cluster.store.artifact import Artifacts, Manifest
from tests.kill_cell import ROOT, SIGNALS, WORDS, Cell, Place, claimed, run_cell
from tests.whole_line import RECIPE, run

STAGES = (
    "corpus", "filter", "tokenizer", "pack", "pretrain", "evaluate-base", "instruct", "rlhf", "evaluate", "release",
)  # fmt: skip
PAGE = ROOT / "docs" / "kill-matrix.md"
DID = {"KILL": "kill -9", "TERM": "SIGTERM", "STOP": "SIGSTOP, 30 s"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--victim", nargs="+", choices=list(WORDS), default=list(WORDS))
    parser.add_argument("--signal", nargs="+", choices=list(SIGNALS), default=list(SIGNALS))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so many")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/tokenmill-kill-matrix"))
    parser.add_argument("--again", action="store_true", help="also cells that are there")
    parser.add_argument("--page", action="store_true", help="write the page and run nothing")
    given = parser.parse_args()
    cells = given.folder / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * given.minutes
    if not given.page:
        for stage in given.stage:
            for victim in given.victim:
                for name in given.signal:
                    if time.monotonic() < end:
                        fill(given.folder, Cell(stage, victim, name), given.again)
    PAGE.write_text(page(there(cells)), encoding="utf-8")


def fill(folder: Path, cell: Cell, again: bool) -> None:
    cells = folder / "cells"
    with claimed(cells, cell.name) as mine:
        if not mine or ((cells / f"{cell.name}.json").exists() and not again):
            return
        begun = time.monotonic()
        whole = undisturbed(folder)
        manifests = steps(whole)
        base = baseline(folder, whole, manifests, cell)
        run_cell(cell, folder / "runs" / cell.name, whole, manifests, base).save(cells)
        mark = {True: "equal", False: f"NOT EQUAL {cell.differs} {cell.again}", None: "not there"}[cell.equal]
        took = duration(time.monotonic() - begun)
        print(f"{cell.name:<32} {took:>7}  lost {cell.lost:5.1f} s  {mark}  {cell.said} {cell.left or ''}", flush=True)
        if cell.equal is not False:
            shutil.rmtree(folder / "runs" / cell.name, ignore_errors=True)


def undisturbed(folder: Path) -> Path:
    """The folder in which the whole line has run with nothing in its way."""
    whole = folder / "undisturbed"
    with claimed(folder, "undisturbed") as mine:
        if not (whole / "done").exists():
            if not mine:
                raise SystemExit("another matrix in this folder is making the undisturbed run: start this one later")
            whole.mkdir(exist_ok=True)
            run(whole, whole / "prefect", "--set", "cluster.workers=1", "--store", str(whole / "store"))
            (whole / "done").touch()
    return whole


def steps(whole: Path) -> list[Manifest]:
    artifacts = Artifacts(whole / "store")
    kinds = [p.name for p in (whole / "store").iterdir() if p.is_dir() and p.name not in ("work", "aside", "leases")]
    found = {m.name: m for kind in kinds for m in artifacts.manifests(kind)}
    return [found[stage] for stage in STAGES]


def baseline(folder: Path, whole: Path, manifests: list[Manifest], cell: Cell) -> float:
    """Seconds of the cell's stage, from the same store and with the same services, with nothing in its way."""
    service = cell.victim if cell.victim in ("mlflow", "s3") else "local"
    kept = folder / "baseline" / f"{cell.stage}-{service}.json"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        number = [m.name for m in manifests].index(cell.stage)
        place = Place(folder / "runs" / f"{cell.name}-baseline", whole, manifests[:number], cell.victim)
        try:
            begun = time.monotonic()
            process = place.run(cell.stage)
            output = process.communicate()[0]
            assert process.returncode == 0, output
            kept.write_text(json.dumps(time.monotonic() - begun), encoding="utf-8")
        finally:
            place.stop()
            shutil.rmtree(place.folder, ignore_errors=True)
    return json.loads(kept.read_text(encoding="utf-8"))


def there(cells: Path) -> dict[tuple[str, str, str], Cell]:
    read = [Cell(**json.loads(path.read_text(encoding="utf-8"))) for path in cells.glob("*.json")]
    return {(cell.stage, cell.victim, cell.signal): cell for cell in read}


def page(cells: dict[tuple[str, str, str], Cell]) -> str:
    tried = [cell for cell in cells.values() if cell.equal is not None]
    wrong = [cell for cell in tried if not cell.equal or not cell.said]
    total = len(STAGES) * len(WORDS) * len(SIGNALS)
    recipe = RECIPE.relative_to(ROOT)
    parts = [
        "# What a run does when something of it dies\n",
        f"Made by `python -m tests.kill_matrix`, from {recipe} with one training worker. In each stage something is\n"
        "killed (`kill -9`), asked to end (SIGTERM) or held (SIGSTOP; SIGCONT after 30 seconds) while the stage is at\n"
        "work; then the same command is run. *Lost* are the seconds of both beyond those of a run with nothing in its\n"
        "way. *Equal*: every file of every artifact has the undisturbed run's checksum; JSON without times, rates and\n"
        "what a resume says of itself.\n",
        f"{len(cells)} of {total} cells: {len(tried)} tried, {len(cells) - len(tried)} without such a process, "
        f"{len(wrong)} wrong.\n",
    ]
    for stage in STAGES:
        rows = [cells.get((stage, victim, name)) for victim in WORDS for name in SIGNALS]
        if not any(rows):
            continue
        parts.append(f"## {stage}\n\n| what | how | what the screen said | lost | equal |\n|---|---|---|---|---|")
        parts += [row(cell) for cell in rows if cell]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def row(cell: Cell) -> str:
    equal = {True: "yes", None: "—", False: f"**no**: {', '.join([*cell.differs, cell.again]).strip(', ')}"}[cell.equal]
    left = f" (left behind: {', '.join(cell.left)})" if cell.left else ""
    lost = f"{max(cell.lost, 0.0):.0f} s" if cell.equal is not None else ""
    said = (cell.said or "**nothing**").replace("|", "\\|")
    return f"| {WORDS[cell.victim]} | {DID[cell.signal]} | {said}{left} | {lost} | {equal} |"


if __name__ == "__main__":
    main()
