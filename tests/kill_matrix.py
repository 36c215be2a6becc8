"""The kill matrix: each process of a run is killed, ended and held in each stage of the tiny line; docs/kill-matrix.md.

    python -m tests.kill_matrix                                     all cells that aren't there yet
    python -m tests.kill_matrix --stage pretrain --victim prefect mlflow --signal KILL STOP --minutes 20
    python -m tests.kill_matrix --at-once 3                         so many lines side by side
    python -m tests.kill_matrix --again --stage corpus              cells of a stage anew
    python -m tests.kill_matrix --page                              the page alone, from the cells that are there

The line runs once undisturbed; then once for each victim and each signal, which strikes in each stage (kill_sweep.py).
What is done is kept in --folder, a file a cell: an interrupted matrix is gone on with, and two may run side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import json
import multiprocessing
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from cluster.quantities import duration
from cluster.store.artifact import Artifacts, Manifest
from flows.prefect_server import EmbeddedServer
from tests import kill_sweep
from tests.kill_cell import Cell
from tests.kill_page import PAGE, STAGES, page
from tests.kill_place import SERVICES, WORDS, Place
from tests.kill_sweep import SIGNALS, Sweep
from tests.whole_line import run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--victim", nargs="+", choices=list(WORDS), default=list(WORDS))
    parser.add_argument("--signal", nargs="+", choices=list(SIGNALS), default=list(SIGNALS))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so many")
    parser.add_argument("--at-once", type=int, default=1, help="cells side by side")
    parser.add_argument("--alone", action="store_true", help="a run for each cell")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/tokenmill-kill-matrix"))
    parser.add_argument("--again", action="store_true", help="also cells that are there")
    parser.add_argument("--page", action="store_true", help="write the page and run nothing")
    given = parser.parse_args()
    folder = given.folder.absolute()
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    if not given.page:
        wanted = [Cell(s, v, how) for s in given.stage for v in given.victim for how in given.signal]
        fill_all(folder, wanted, given.again, given.minutes, given.at_once, given.alone)
    write_page(folder)


def fill_all(folder: Path, wanted: list[Cell], again: bool, minutes: float, at_once: int, alone: bool) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # behind `&`; Ray cancels by it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    undisturbed(folder)
    end = time.time() + 60 * minutes
    widest = folder / "at-once"
    before = int(widest.read_text(encoding="utf-8")) if widest.exists() else 1
    widest.write_text(str(max(before, at_once)), encoding="utf-8")
    sweeps: dict[tuple[str, ...], list[str]] = {}
    for cell in wanted:
        key = (cell.victim, cell.signal, *([cell.stage] if alone else ()))
        sweeps.setdefault(key, []).append(cell.stage)
    server = EmbeddedServer(password="")
    server.start()
    try:
        api = server.wait() or ""
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(at_once, mp_context=spawn) as pool:
            jobs = [pool.submit(fill, folder, k[0], k[1], stages, again, end, api) for k, stages in sweeps.items()]
            for job in jobs:
                job.result()
    finally:
        server.stop(at_once=True)


def fill(folder: Path, victim: str, how: str, stages: list[str], again: bool, end: float, api: str) -> None:
    """The cells that aren't there, unless another process is at them or it is too late. What goes wrong is said."""
    cells, begun = folder / "cells", time.time()
    name = f"{victim}-{how}-{stages[0]}"
    with claimed(cells, f"{victim}-{how}") as mine:
        stages = [s for s in stages if again or not (cells / f"{Cell(s, victim, how).name}.json").exists()]
        if not mine or begun > end or not stages:
            return
        try:
            whole = undisturbed(folder)
            manifests = steps(whole)
            usual = baseline(folder, whole, manifests, victim, api)
            sweep = Sweep(folder / "runs" / name, whole, manifests, victim, how, usual, api)
            filled = sweep.run(stages, lambda cell: cell.save(cells))
        except Exception:
            print(f"{name}: {traceback.format_exc()}", file=sys.stderr, flush=True)
            return
    for cell in filled:
        mark = {True: "equal", False: f"NOT EQUAL {cell.differs} {cell.again}", None: "not there"}[cell.equal]
        print(f"{cell.name:<28} lost {cell.lost:6.1f} s  {mark}  {cell.said} {cell.left or ''}", flush=True)
    print(f"{name}: {duration(time.time() - begun)}", flush=True)
    place, kept = folder / "runs" / name, folder / "said"
    kept.mkdir(exist_ok=True)
    shutil.copyfile(place / "screens.txt", kept / f"{name}.txt")
    if all(cell.equal is not False for cell in filled):
        shutil.rmtree(place, ignore_errors=True)


def undisturbed(folder: Path) -> Path:
    """The folder in which the whole line has run with nothing in its way."""
    whole = folder / "undisturbed"
    with claimed(folder, "undisturbed", wait=True):
        if not (whole / "done").exists():
            whole.mkdir(exist_ok=True)
            run(whole, whole / "prefect", "--set", "cluster.workers=1", "--store", str(whole / "store"))
            (whole / "done").touch()
    return whole


def steps(whole: Path) -> list[Manifest]:
    artifacts = Artifacts(whole / "store")
    kinds = [p.name for p in (whole / "store").iterdir() if p.is_dir() and p.name not in ("work", "aside", "leases")]
    found = {m.name: m for kind in kinds for m in artifacts.manifests(kind)}
    return [found[stage] for stage in STAGES]


def baseline(folder: Path, whole: Path, manifests: list[Manifest], victim: str, api: str) -> dict[str, float]:
    """Seconds of each stage, with the victim's services, with nothing in its way: see kill_sweep.undisturbed."""
    service = victim if victim in SERVICES else "local"
    kept = folder / f"baseline-{service}.json"
    with claimed(folder, kept.stem, wait=True):
        if not kept.exists():
            place = Place(folder / "runs" / kept.stem, whole, [], victim if victim in SERVICES else "raylet", api)
            try:
                kept.write_text(json.dumps(kill_sweep.undisturbed(place, manifests), indent=1), encoding="utf-8")
            finally:
                place.stop()
                shutil.rmtree(place.folder, ignore_errors=True)
    return json.loads(kept.read_text(encoding="utf-8"))


def write_page(folder: Path) -> None:
    files = list((folder / "cells").glob("*.json"))
    read = [Cell(**json.loads(path.read_text(encoding="utf-8"))) for path in files]
    newest = max((path.stat().st_mtime for path in files), default=time.time())
    date = datetime.datetime.fromtimestamp(newest, datetime.UTC).date().isoformat()
    widest = folder / "at-once"
    at_once = int(widest.read_text(encoding="utf-8")) if widest.exists() else 1
    PAGE.write_text(page({(c.stage, c.victim, c.signal): c for c in read}, at_once, date), encoding="utf-8")


@contextlib.contextmanager
def claimed(folder: Path, name: str, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone is at it now, so that several may fill one matrix. wait: until it is."""
    with (folder / f"{name}.lock").open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


if __name__ == "__main__":
    main()
