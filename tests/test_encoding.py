"""Text is UTF-8, whatever the locale says; of the calls, ruff sees only those on what it can infer to be a path."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.files import ROOT

SPAWNS = {"run", "Popen", "check_output", "check_call"}


def left_to_the_locale(tree: ast.AST) -> Iterator[int]:
    """The lines of calls that read or write text in the encoding of the locale."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or any(k.arg in (None, "encoding") for k in call.keywords):
            continue
        method = isinstance(call.func, ast.Attribute)
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = call.func.value if isinstance(call.func, ast.Attribute) else None
        keywords = {k.arg for k in call.keywords}
        if name == "read_text" and method:
            wrong = not call.args
        elif name == "write_text":
            wrong = len(call.args) < 2
        elif name == "open" and not (isinstance(owner, ast.Name) and owner.id in ("os", "Run", "opener", "gzip")):
            modes = [*call.args[0 if method else 1 :], *(k.value for k in call.keywords if k.arg == "mode")]
            mode = modes[0].value if modes and isinstance(modes[0], ast.Constant) else "r"
            wrong = "b" not in str(mode)
        else:
            wrong = name in SPAWNS and bool(keywords & {"text", "universal_newlines"})
        if wrong:
            yield call.lineno


@pytest.mark.parametrize("room", ["flows", "cluster", "model", "infra", "tests"])
def test_no_text_is_read_or_written_in_the_encoding_of_the_locale(room: str) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in sorted((ROOT / room).rglob("*.py"))
        for line in left_to_the_locale(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        ("p.read_text()", True),
        ("p.write_text('a')", True),
        ("open(p)", True),
        ("open(p, 'w')", True),
        ("p.open()", True),
        ("p.open('a')", True),
        ("subprocess.run([], text=True)", True),
        ("p.read_text(encoding='utf-8')", False),
        ("open(p, 'rb')", False),
        ("p.open('ab')", False),
        ("subprocess.run([])", False),
    ],
)
def test_such_calls_are_seen(call: str, wrong: bool) -> None:
    assert bool(list(left_to_the_locale(ast.parse(call)))) is wrong
