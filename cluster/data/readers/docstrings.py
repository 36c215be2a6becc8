"""Python sources read through `ast`: their documentation as prose.

    Module json.decoder                         one heading a module, class, function, with its signature;
    Class JSONDecoder(object)                   below it, its docstring (PEP 257)
    Method JSONDecoder.decode(self, s)

Nothing is imported or executed.
"""

from __future__ import annotations

import ast
import gc
import io
import tokenize
import warnings
from collections.abc import Iterable, Iterator

BIG = 16_000  # characters of a module's documentation beyond which each class becomes a document of its own
SCOPES = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
Scope = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def decode(data: bytes) -> str | None:
    """The source's text by its own encoding declaration (PEP 263), or None if it doesn't decode."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding).replace("\r\n", "\n")
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return None


def tree_of(text: str) -> ast.Module | None:
    """The parsed module, or None where it is no valid Python (templates, Python 2)."""
    collecting = gc.isenabled()
    gc.disable()  # a tree is many objects and no garbage: a tenth of the time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    finally:
        if collecting:
            gc.enable()


def prose(text: str, module: str) -> Iterator[tuple[str, str]]:
    """(suffix of the name, document) of a module's documentation: one, or more if it is big."""
    tree = tree_of(text)
    if tree is None:
        return
    head = [f"Module {module}"]
    if top := ast.get_docstring(tree):
        head.append(top)
    sections: list[tuple[str, str]] = []  # (class name or "", section)
    for node in definitions(tree.body):
        body = "\n\n".join(_sections(node, ""))
        if body:
            sections.append((node.name if isinstance(node, ast.ClassDef) else "", body))
    if len(head) == 1 and not sections:
        return
    if sum(len(s) for _, s in sections) <= BIG:
        yield "", "\n\n".join([*head, *(s for _, s in sections)]) + "\n"
        return
    yield "", "\n\n".join([*head, *(s for name, s in sections if not name)]) + "\n"
    seen: dict[str, int] = {}
    for name, section in sections:
        if name:  # a name may be defined again, in an `else`
            seen[name] = seen.get(name, 0) + 1
            suffix = f":{name}" if seen[name] == 1 else f":{name}~{seen[name]}"
            yield suffix, f"Module {module}\n\n{section}\n"


def _sections(node: Scope, prefix: str) -> Iterator[str]:
    name = f"{prefix}{node.name}"
    doc = ast.get_docstring(node)
    if doc:
        what = "Class" if isinstance(node, ast.ClassDef) else "Method" if prefix else "Function"
        yield f"{what} {name}{signature(node)}\n\n{doc}"
    if isinstance(node, ast.ClassDef):
        for child in definitions(node.body):
            yield from _sections(child, name + ".")


def definitions(body: Iterable[ast.stmt]) -> Iterator[Scope]:
    """Classes and functions of a body, also those under `if` and `try`."""
    for node in body:
        if isinstance(node, SCOPES):
            yield node
        elif isinstance(node, ast.If):
            yield from definitions([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from definitions([*node.body, *(s for h in node.handlers for s in h.body), *node.orelse])


def signature(node: Scope) -> str:
    """ "(a, b=1, *, c) -> int"; a class has its bases."""
    if isinstance(node, ast.ClassDef):
        return f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    text = f"({ast.unparse(node.args)})"
    if node.returns is not None:
        text += f" -> {ast.unparse(node.returns)}"
    return text if len(text) <= 400 else "(...)"


def topics(text: str) -> Iterator[tuple[str, str]]:
    """(topic, text) of a module that is one dict of strings, as the standard library's pydoc_data.topics."""
    tree = tree_of(text)
    for node in tree.body if tree else ():
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                try:
                    name, body = ast.literal_eval(key or node), ast.literal_eval(value)
                except ValueError:
                    continue
                if isinstance(name, str) and isinstance(body, str):
                    yield name, body
