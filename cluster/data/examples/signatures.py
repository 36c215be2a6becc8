"""Questions on the functions of installed packages: their real signatures and docstrings, read without importing them.

    What does `shutil.copy(src, dst)` do?              Copy data and mode bits.
    What is the signature of `shutil.copy`?            `copy(src, dst)`
    Which function of `shutil` does this: …            `shutil.copy`
    How many parameters does `copy(src, dst)` have?    src, dst. The answer is 2.        verifiable

As multiple choice: which of four docstrings follows the function's head; that is a plain language model's question.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from cluster.data.examples.puzzles import Problem, final
from cluster.data.readers import installed
from cluster.data.readers.docstrings import Scope, definitions, signature, tree_of
from cluster.errors import UserError

SUMMARY = (20, 160)  # characters of a summary, from and to
HEAD = 90  # characters of name and signature, at most
CACHE_VERSION = 1


class Function(NamedTuple):
    module: str
    qualname: str
    signature: str  # without self, cls and annotations
    summary: str

    @property
    def name(self) -> str:
        return f"{self.module}.{self.qualname}"

    @property
    def head(self) -> str:
        return f"{self.qualname.rsplit('.')[-1]}{self.signature}"

    @property
    def parameters(self) -> list[str]:
        arguments = _arguments(self.signature)
        return [] if arguments is None else [a.arg for a in _all(arguments)]


@dataclass(frozen=True)
class Signatures:
    """Args: packages, as in installed://; kind: what is asked, one of those above, or all."""

    packages: str = "stdlib"
    kind: str = "all"

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, "all"):
            raise UserError(f"kind must be one of {', '.join(KINDS)}, all; not {self.kind!r}")

    def functions(self) -> list[Function]:
        return list(known_functions(tuple(p.strip() for p in self.packages.split(",") if p.strip())))

    def problems(self, function: Function, rng: random.Random, others: list[Function]) -> list[Problem]:
        """One problem of each kind on a function; `others` give the wrong choices."""
        kinds = KINDS if self.kind == "all" else (self.kind,)
        return [p for kind in kinds if (p := problem(kind, function, rng, others)) is not None]


KINDS = ("summary", "signature", "name", "count")


def problem(kind: str, f: Function, rng: random.Random, others: list[Function]) -> Problem | None:
    """A question of one kind; None where the function doesn't suit it."""
    wrong = _different(f, rng, others)
    if kind == "summary":
        question = f"What does `{f.module}.{f.qualname}{f.signature}` do?"
        summaries = tuple(w.summary for w in wrong)
        prompt = f'def {f.head}:\n    """'
        return Problem(f.summary, question, f.summary, f.summary, summaries, "exact", prompt)
    if kind == "signature":
        heads = tuple(f"`{w.head}`" for w in wrong)
        question = f"What is the signature of `{f.name}`?"
        return Problem(f.summary, question, f"`{f.head}`", f"`{f.head}`", heads, "exact")
    if kind == "name":
        names = tuple(f"`{w.name}`" for w in wrong)
        question = f"Which function of `{f.module}` does this: {f.summary}"
        return Problem(f.summary, question, f"`{f.name}`", f"`{f.name}`", names, "exact")
    parameters = f.parameters
    if not parameters:
        return None
    count = len(parameters)
    counts = tuple(str(c) for c in (count + 1, count + 2, max(count - 1, 0)))
    question = f"How many parameters does `{f.head}` have?"
    return Problem(f.summary, question, f"{', '.join(parameters)}. {final(str(count))}", str(count), counts, "number")


def _different(f: Function, rng: random.Random, others: list[Function]) -> list[Function]:
    """Three other functions, of another name and summary."""
    found: list[Function] = []
    for _ in range(100):
        other = rng.choice(others)
        taken = [f, *found]
        if all(other.summary != t.summary and other.name != t.name and other.head != t.head for t in taken):
            found.append(other)
        if len(found) == 3:
            break
    return found


@lru_cache(maxsize=8)
def known_functions(packages: tuple[str, ...]) -> tuple[Function, ...]:
    """Usable functions of the packages, each summary once, sorted by name.

    Parsing a library takes seconds, so the list is kept in the cache folder, under a digest of the files.

    Raises:
        ValueError: a package is not installed.
    """
    from cluster.cache import cache_root

    digest = installed.digest(f"installed://code?packages={','.join(packages)}")
    key = hashlib.sha256(f"{CACHE_VERSION}|{digest}".encode()).hexdigest()[:20]
    path = cache_root() / "functions" / f"{key}.json"
    try:
        return tuple(Function(*row) for row in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass
    found: dict[str, Function] = {}
    for info in documented(packages):
        function = usable(*info)
        if function is not None:
            found.setdefault(function.summary, function)
    functions = tuple(sorted(found.values(), key=lambda f: (f.name, f.signature)))
    _remember(path, functions)
    return functions


class FunctionInfo(NamedTuple):
    """A public function or method that has a docstring."""

    module: str
    qualname: str  # within its module: "JSONDecoder.decode"
    signature: str  # "(self, s, _w=WHITESPACE.match)"
    docstring_first_line: str


def documented(packages: Iterable[str]) -> Iterator[FunctionInfo]:
    """Public functions and methods with a docstring, in the order of packages, modules and lines.

    Raises:
        UserError: a package is not installed.
    """
    source = installed.parse(f"installed://code?packages={','.join(packages)}")
    order = {package: index for index, package in enumerate(source.packages)}
    for file in sorted(installed.files(source), key=lambda f: (order[f.package], f.name)):
        module = installed.module_name(file.name)
        if any(part.startswith("_") for part in module.split(".")):
            continue
        text = installed.read_source(file)
        tree = tree_of(text) if text else None
        for node in definitions(tree.body) if tree else ():
            yield from _documented(node, "", module)


def _documented(node: Scope, prefix: str, module: str) -> Iterator[FunctionInfo]:
    if node.name.startswith("_"):
        return
    if isinstance(node, ast.ClassDef):
        for child in definitions(node.body):
            yield from _documented(child, f"{node.name}.", module)
        return
    doc = ast.get_docstring(node)
    if doc:
        first = re.sub(r"\s+", " ", doc.split("\n\n")[0]).strip()
        yield FunctionInfo(module, prefix + node.name, signature(node), first)


def _remember(path: Path, functions: tuple[Function, ...]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        part.write_text(json.dumps(functions), encoding="utf-8")
        part.replace(path)
    except OSError:  # a cache that can't be written is only slower
        return


def usable(module: str, qualname: str, signature: str, summary: str) -> Function | None:
    """A function that a question can be asked on: a real sentence as its summary, a signature of moderate length."""
    arguments = _arguments(signature)
    summary = " ".join(summary.split())
    if arguments is None or not SUMMARY[0] <= len(summary) <= SUMMARY[1]:
        return None
    if (
        len(summary.split()) < 4
        or not summary[0].isalpha()
        or summary.endswith((":", ","))
        or "(" in summary.split()[0]
    ):
        return None
    positional = arguments.posonlyargs or arguments.args
    if positional and positional[0].arg in ("self", "cls") and "." in qualname:
        positional.pop(0)
    for argument in _all(arguments):
        argument.annotation = None
    function = Function(module, qualname, f"({ast.unparse(arguments)})", summary)
    return function if len(f"{function.name}{function.signature}") <= HEAD else None


def _arguments(signature: str) -> ast.arguments | None:
    try:
        node = ast.parse(f"def f{signature}: pass").body[0]
    except (SyntaxError, ValueError):
        return None
    return node.args if isinstance(node, ast.FunctionDef) else None


def _all(arguments: ast.arguments) -> list[ast.arg]:
    extra = [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *extra]
