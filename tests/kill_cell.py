"""A cell of the kill matrix: what the screen said, what it cost, whether the artifact is the undisturbed one's."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.store.artifact import Artifacts, Manifest

# What two undisturbed runs differ in: times, rates, and how the work was come by.
VARYING = re.compile(r"^(t|tokens_per_second|mfu|resumed_from|seconds|created|wall_seconds|.*_seconds)$")

# The product's words for a death, those that end a run first: one of them is the page's sentence.
TELLING = (
    r"^(Error|Stopped)\b|has ended without a word|^Traceback|^Fatal",
    r"was lost|was ended by|It is tried again|starts? again|is restarted",
    r"has not been shown|has not got|does not answer|has not answered|waits? for",
)


@dataclass
class Cell:
    """What came of one."""

    stage: str
    victim: str
    signal: str
    said: str = ""
    code: int | None = None  # of the disturbed run; None: it went on to the next stage
    lost: float = 0.0  # seconds until the stage was done, beyond those of an undisturbed one
    equal: bool | None = None  # None: there was no such process
    differs: list[str] = field(default_factory=list)
    again: str = ""  # what the same command said, where it went wrong
    left: list[str] = field(default_factory=list)  # processes that outlived the disturbed run

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.victim}-{self.signal}"

    def save(self, folder: Path) -> None:
        (folder / f"{self.name}.json").write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def sentence(output: str, code: int) -> str:
    """What the screen said of it, in one sentence; "" if it said nothing."""
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    for telling in TELLING if code else TELLING[1:]:
        if found := [line for line in lines if re.search(telling, line)]:
            return found[0] if len(found[0]) <= 300 else found[0][:299] + "…"
    if code < 0:
        return ""
    return "" if code else "It went on to its end, and said nothing of it."


# -- equality ----------------------------------------------------------------------------------------------------


def differences(artifacts: Artifacts, whole: Path, manifests: list[Manifest]) -> list[str]:
    """What the artifacts of these steps have that the undisturbed run's have not, and what is missing."""
    found: list[str] = []
    for manifest in manifests:
        artifact = artifacts.find(manifest.kind, manifest.fingerprint)
        if artifact is None:
            found.append(f"{manifest.name}: there is none")
            continue
        folder, theirs = artifact.path(), whole / "store" / manifest.key
        mine = artifact.manifest.files
        found += [f"{manifest.name}/{name}: in one only" for name in set(mine) ^ set(manifest.files)]
        for name in set(mine) & set(manifest.files):
            if mine[name].sha256 != manifest.files[name].sha256 and content(folder / name) != content(theirs / name):
                found.append(f"{manifest.name}/{name}")
        if varied(artifact.summary) != varied(manifest.summary):
            found.append(f"{manifest.name}: its summary")
    return sorted(found)


def content(path: Path) -> str:
    """A file's checksum; of JSON without what varies from run to run."""
    if path.suffix not in (".json", ".jsonl"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    text = path.read_text(encoding="utf-8")
    values = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    return json.dumps(varied(values), sort_keys=True)


def varied(value: Any) -> Any:
    """JSON without the keys that vary."""
    if isinstance(value, dict):
        return {k: varied(v) for k, v in value.items() if not VARYING.match(k)}
    return [varied(v) for v in value] if isinstance(value, list) else value
