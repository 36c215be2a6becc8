"""Writes docs/files.md: every file of the product, with the room that it is in and what it is.

python -m tests.files > docs/files.md
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = """# Every file, and the room that it is in

Made by `python -m tests.files > docs/files.md` from the first line of each file; a test says when it is out of date.
Dependencies point one way, `flows` → `cluster` → `model`, and down the list of rooms in `pyproject.toml` inside
`cluster/`; no circle is waived (`make lint`).
"""


def page() -> str:
    """The page as it should be."""
    lines = [HEAD.rstrip()]
    for package in ("flows", "cluster", "model"):
        rooms: dict[Path, list[Path]] = {}
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.stat().st_size:
                rooms.setdefault(path.parent, []).append(path)
        for room, paths in sorted(rooms.items()):
            lines += ["", f"## {room.relative_to(ROOT)}/", "", "| file | what it is |", "|---|---|"]
            lines += [f"| `{path.name}` | {first_line(path)} |" for path in paths]
    return "\n".join(lines) + "\n"


def first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0].replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
