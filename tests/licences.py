"""Writes docs/licences.md: under which licence each installed package is that the product or its development uses.

python -m tests.licences > docs/licences.md
"""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = """# Licences of what is installed

Made by `make licences` from the metadata of what `constraints.txt` pins; a test says when it is out of date.
"run" is what `pip install tokenmill` brings, "extra" what its extras (hf, gguf, constrained) add, "dev" the rest.
A licence is given in the package's own words (SPDX where it has them); "?" means that its metadata say nothing.
"""
TEXTS = {
    "Permission is hereby granted, free of charge, to any person obtaining a copy": "MIT",
    "Redistribution and use in source and binary forms": "BSD",
    "Apache License Version 2.0": "Apache-2.0",
}
NAME = re.compile(r"^[A-Za-z0-9._-]+")


def page(constraints: str | None = None) -> str:
    """The page as it should be."""
    text = constraints or (ROOT / "constraints.txt").read_text(encoding="utf-8")
    names = sorted({plain(line.partition("==")[0]) for line in text.splitlines() if line and not line.startswith("#")})
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [one for extra in ("hf", "gguf", "constrained") for one in project["optional-dependencies"][extra]]
    run, more = closure(project["dependencies"]), closure(extras)
    lines = [HEAD.rstrip(), "", "| package | licence | for |", "|---|---|---|"]
    for name in names:
        use = "run" if name in run else "extra" if name in more else "dev"
        lines.append(f"| {name} | {licence(name)} | {use} |")
    return "\n".join(lines) + "\n"


def closure(requirements: list[str]) -> set[str]:
    """The packages that these requirements bring, here."""
    found: set[str] = set()
    pending = list(requirements)
    while pending:
        requirement = pending.pop()
        name, extras = plain(name_of(requirement)), re.findall(r"\[([^\]]*)\]", requirement.partition(";")[0])
        if name in found and not extras:
            continue
        found.add(name)
        wanted = {extra.strip() for part in extras for extra in part.split(",")}
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another system
        for one in needed:
            asked = re.search(r"extra\s*==\s*['\"]([^'\"]+)", one)
            if asked is None or asked.group(1) in wanted:
                pending.append(one)
    return found


def licence(name: str) -> str:
    """In the package's own words."""
    try:
        told = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return "? (not installed here)"
    classifiers = [c.split(" :: ")[-1] for c in told.get_all("Classifier") or [] if c.startswith("License ::")]
    named = [c for c in classifiers if c != "OSI Approved"]
    words = told.get("License-Expression") or "; ".join(named) or (told.get("License") or "").strip().split("\n")[0]
    return " ".join(words.split()).replace("|", "\\|") or by_its_file(name)


def by_its_file(name: str) -> str:
    """Which licence the text is that a package comes with."""
    for file in metadata.files(name) or []:
        if file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING")):
            text = " ".join(Path(str(file.locate())).read_text(encoding="utf-8").split())
            return next((f"{known} (its {file.name})" for words, known in TEXTS.items() if words in text), "?")
    return "?"


def name_of(requirement: str) -> str:
    match = NAME.match(requirement.strip())
    assert match, requirement
    return match.group()


def plain(name: str) -> str:
    """A name as all spellings of it are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


if __name__ == "__main__":
    print(page(), end="")
