"""Asks a database of advisories about every package that constraints.txt pins, and fails where it could not look.

.venv-audit/bin/python infra/audit/audit.py constraints.txt [option of pip-audit]…

Exit codes: 0 if nothing is known against any of them, 1 if something is, 2 if that can't be said. pip-audit ends with
the same code for an advisory and for a database that doesn't answer, and with 0 for one that answers and knows nothing;
so a version that everybody knows to be vulnerable is asked about first.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

KNOWN = ("jinja2", "2.10")  # CVE-2019-10906, a way out of its sandbox
PATIENCE_SECONDS = 1800  # for all packages; each question has a time of its own
OPTIONS = ["--no-deps", "--disable-pip", "--strict", "--progress-spinner=off", "--vulnerability-service=osv", "-f=json"]


class NotLooked(Exception):
    """Why nothing can be said."""


def ask(requirements: Path, options: Sequence[str]) -> tuple[str, str]:
    """What pip-audit, in this Python's environment, writes: (stdout, stderr)."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(requirements), *OPTIONS, *options]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=PATIENCE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return "", f"no answer within {PATIENCE_SECONDS} s"
    return done.stdout, done.stderr


def main(arguments: Sequence[str], ask: Callable[[Path, Sequence[str]], tuple[str, str]] = ask) -> int:
    constraints, options = Path(arguments[0]), arguments[1:]
    try:
        with tempfile.TemporaryDirectory() as folder:
            known = Path(folder) / "known.txt"
            known.write_text("==".join(KNOWN) + "\n", encoding="utf-8")
            if not any(advisories(known, options, ask).values()):
                raise NotLooked(f"the database answers, but knows nothing against {'=='.join(KNOWN)}")
        found = advisories(constraints, options, ask)
    except NotLooked as problem:
        print(f"Not audited: {_visible(problem)}. Nothing is known of the packages in {constraints}, good or bad.")
        return 2
    for package, against in sorted(found.items()):
        for advisory in against:
            fixed = ", ".join(advisory.get("fix_versions") or []) or "no version"
            names = ", ".join(advisory.get("aliases") or [])
            print(_visible(f"{package}: {advisory['id']} ({names}); fixed in {fixed}"))
    vulnerable = sum(map(bool, found.values()))
    print(f"{constraints}: {vulnerable} of {len(found)} packages have a known vulnerability.")
    return 1 if vulnerable else 0


def advisories(
    requirements: Path, options: Sequence[str], ask: Callable[[Path, Sequence[str]], tuple[str, str]]
) -> dict[str, list[dict[str, Any]]]:
    """What is known against each pinned package, by NAME==VERSION.

    Raises:
        NotLooked: nobody answered, or not about all of them.
    """
    pinned = _pinned(requirements)
    answer, complaints = ask(requirements, options)
    try:
        told = {_plain(one["name"]): one for one in json.loads(answer)["dependencies"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotLooked((complaints or answer).strip().split("\n")[-1] or "pip-audit says nothing") from None
    missing = [name for name, version in pinned.items() if not _answers(told.get(_plain(name), {}), version)]
    if missing:
        raise NotLooked(f"no answer about {', '.join(missing)}")
    return {f"{name}=={version}": told[_plain(name)]["vulns"] for name, version in pinned.items()}


def _pinned(requirements: Path) -> dict[str, str]:
    """Name -> version of each line. Raises NotLooked for one that pins nothing, which nobody could be asked about."""
    try:
        lines = requirements.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise NotLooked(f"{requirements} can't be read ({error})") from None
    pinned = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].partition(";")[0].strip()
        if text:
            name, equal, version = text.partition("==")
            if not equal or not version.strip():
                raise NotLooked(f"line {number} of {requirements} is no NAME==VERSION: {text}")
            pinned[name.strip()] = version.strip()
    if not pinned:
        raise NotLooked(f"{requirements} pins no package")
    return pinned


def _answers(one: dict[str, Any], version: str) -> bool:
    """Whether this is an answer about that version, of the shape that an answer has."""
    vulns = one.get("vulns")
    return (
        one.get("version", version) == version
        and isinstance(vulns, list)
        and all(isinstance(each, dict) and isinstance(each.get("id"), str) and _texts(each) for each in vulns)
    )


def _texts(advisory: dict[str, Any]) -> bool:
    lists = [advisory.get(name) or [] for name in ("aliases", "fix_versions")]
    return all(isinstance(each, list) and all(isinstance(text, str) for text in each) for each in lists)


def _visible(text: object) -> str:
    """A stranger's words, which steer no terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def _plain(name: str) -> str:
    """A package's name as all spellings of it are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
