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
OPTIONS = ["--no-deps", "--disable-pip", "--strict", "--progress-spinner=off", "--vulnerability-service=osv", "-f=json"]


class NotLooked(Exception):
    """Why nothing can be said."""


def ask(requirements: Path, options: Sequence[str]) -> tuple[str, str]:
    """What pip-audit, in this Python's environment, writes: (stdout, stderr)."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(requirements), *OPTIONS, *options]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
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
        print(f"Not audited: {problem}. Nothing is known of the packages in {constraints}, good or bad.")
        return 2
    for package, against in sorted(found.items()):
        for advisory in against:
            fixed = ", ".join(advisory.get("fix_versions") or []) or "no version"
            print(f"{package}: {advisory['id']} ({', '.join(advisory.get('aliases') or [])}); fixed in {fixed}")
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
    answer, complaints = ask(requirements, options)
    try:
        told = {_plain(one["name"]): one for one in json.loads(answer)["dependencies"]}
    except (ValueError, KeyError, TypeError):
        raise NotLooked((complaints or answer).strip().split("\n")[-1] or "pip-audit says nothing") from None
    lines = requirements.read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split(";")[0].strip().split("==", 1) for line in lines if line and not line.startswith("#"))
    missing = [name for name in pinned if "vulns" not in told.get(_plain(name), {})]
    if missing:
        raise NotLooked(f"no answer about {', '.join(missing)}")
    return {f"{name}=={version}": told[_plain(name)]["vulns"] for name, version in pinned.items()}


def _plain(name: str) -> str:
    """A package's name as all spellings of it are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
