"""Commands for a person to type next: pasted as they are, they work, from any folder."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.masking import without_secrets

if TYPE_CHECKING:
    from cluster.tracking.place import Place
    from flows.run import Run

ROOT = Path(__file__).parents[1]
PROMPT = "The"  # where a recipe has none of its own
SHORT = 60  # characters of a prompt that is shown in a command


def next_commands(run: Run) -> list[str]:
    """The commands that a person would type next, as far as this run's recipe has use for them."""
    release = run.outcomes["release"].summary.values() if "release" in run.outcomes else None
    models = [o.artifact for o in run.outcomes.values() if o.artifact.kind == "model"]
    chats = any(name in run.outcomes for name in ("instruct", "rlhf"))
    place, commands = run.tracker.place, []
    if release is not None:
        model, place_of_model = release.get("uri", ""), place
    elif models:
        model, place_of_model = str(Path(models[-1].path(verify=False)).absolute()), None
    else:
        model, place_of_model = "", None
    if model:
        commands += [tokenmill("chat", model, place=place_of_model)] if chats else []
        commands.append(tokenmill("generate", model, prompt_of(run), place=place_of_model))
    if release is not None:
        commands.append(tokenmill("models", release.get("name", ""), place=place))
    if run.until:
        commands.append(again(run, until=False))
        commands += [] if model else [again(run, until=False, more=["--plan"])]
    return commands


def prompt_of(run: Run) -> str:
    """A prompt of the recipe's own evaluation, if one is short enough to be typed."""
    from cluster.evaluate.summary import samples

    outcome = run.outcomes.get("evaluate") or run.outcomes.get("evaluate-base")
    prompts = [str(s.get("prompt", "")) for s in samples(outcome.artifact)] if outcome else []
    return next((p for p in prompts if 0 < len(p) <= SHORT and p.isprintable() and p[0] not in " -"), PROMPT)


def again(run: Run, until: bool = True, more: list[str] | None = None) -> str:
    """The command that made this run; without `until`, the one that carries on to the end.

    A recipe names its sources and its store from the working folder, so the command goes there.
    """
    source = f"./{run.source}" if run.source.startswith("-") else run.source
    words = ["run", source]
    for text in run.overrides:
        words += ["--set", text]
    if until and run.until:
        words += ["--until", run.until]
    return f"cd {shlex.quote(str(Path.cwd()))} && {tokenmill(*words, *(more or []))}"


def tokenmill(*words: str, place: Place | None = None) -> str:
    """A command line of this program; it asks the MLflow at `place`, wherever it is typed."""
    known = without_secrets(os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/"))
    where = f"MLFLOW_TRACKING_URI={shlex.quote(place.uri)} " if place is not None and known != place.uri else ""
    return where + f"{program()} {' '.join(shlex.quote(w) for w in words)}"


def program() -> str:
    """How this installation's command is typed."""
    own, found = Path(sys.executable).with_name("tokenmill"), shutil.which("tokenmill")
    if found and (not own.exists() or own.samefile(found)):
        return "tokenmill"
    if own.exists():
        return shlex.quote(str(own))
    return f"PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)} -m flows"
