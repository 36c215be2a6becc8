"""A name out of a file becomes a path by model/inside.py alone: nobody joins a path with what isn't known to be ours.

Known are constants, and names that are made of numbers, digests and constants; each such place is in OURS, with where
its name is from. A new join with anything else fails here: use `inside(folder, name)`, or say in OURS whose name it is.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.files import ROOT

ROOMS = ("flows", "cluster", "model")
LEADS_UP = {"joinpath", "with_name", "with_stem", "relative_to_root"}
OURS = {
    # made here, of numbers, digests and constants
    "cluster/cache.py": {"f'tokenmill-{os.getuid()}'"},
    "cluster/data/examples/signatures.py": {"f'{key}.json'", "f'.{path.name}-{uuid.uuid4().hex}'"},
    "cluster/data/pack.py": {
        "f'{name}.docs.npy'", "f'{name}.bytes.npy'", "f'{self.stem}-{len(self.shards):05d}.bin'",  # file_names()
    },
    "cluster/data/shards.py": {"f'documents-{self.shards:05d}.parquet'"},
    "cluster/registry/find.py": {"hashlib.sha256(key.encode()).hexdigest()[:20]"},
    "cluster/registry/promote.py": {"f'.release-{hashlib.sha256(name.encode()).hexdigest()[:12]}.lock'"},
    "cluster/store/checkpoints.py": {"copy.name + '.lock'"},
    "cluster/store/folder.py": {
        "f\"{prefix.split('/')[0]}-{digest}\"",  # the kind of a stage, after check_place
        "f'{folder.name}.part-{uuid.uuid4().hex[:8]}'", "folder.name + '.lock'",
        "n",  # what is published, as `describe` finds it
    },
    "cluster/store/lease_place.py": {"self.key", "f'{TEMPORARY}leases.lock'", "f'{TEMPORARY}{mine.nonce}'"},
    "cluster/store/s3.py": {"f'.tmp-{uuid.uuid4().hex}'", "n"},  # what is published
    "cluster/store/workplace.py": {
        "f'out-{os.getpid()}-{secrets.token_hex(3)}'", "fingerprint",
    },
    "cluster/tracking/outbox.py": {"f'{key}.stage'", "f'{path.stem}.stage'"},  # of the outbox' own listing
    "cluster/tracking/place.py": {"hashlib.sha256(store.encode()).hexdigest()[:16]", "path.name + '.lock'"},
    "cluster/tracking/sender.py": {"f'{folder.name}-refused.jsonl'"},
    "cluster/tracking/tracker.py": {
        "f'{stamp}-{os.getpid()}-{secrets.token_hex(3)}'", "f'{key}.jsonl'", "f'{self.key}.stage'",  # letters, by _open
    },
    "cluster/train/precision.py": {"f'{MEMORY}.{os.getpid()}'"},
    "cluster/train/worker.py": {"f'{step}'"},
    "model/interop/folder.py": {"f'part-{shard}'", "name"},  # write_weights' own
    # checked where it is joined, or listed by this machine
    "cluster/store/local.py": {
        "check_key(key)", "name", "f'{TEMPORARY}{uuid.uuid4().hex}'",
    },
    "cluster/store/walk.py": {"at"},
    "cluster/data/readers/installed.py": {"name", "path"},  # of packages that are installed, and so run
    "model/inside.py": {"entry.name", "plain_name(name, by)"},
    # a person's own words
    "cluster/interop/base.py": {"name"},  # FILES, and weight_files' keys, which went through `inside`
    "cluster/interop/gguf.py": {"f'.{target.name}.part'"},
    "cluster/interop/huggingface.py": {"f'.{target.name}{BUILDING}{uuid.uuid4().hex[:8]}'"},
    "flows/recipe_toml.py": {"base"},
    # numbers, or names out of our own lists
    "cluster/data/order.py": {"weights.sum()"},
    "cluster/data/tokenizer/foreign.py": {"file"},
    "cluster/quantize/quantize.py": {"length"},
    "cluster/serve/answer.py": {"max(self.seconds, 1e-09)"},
    "cluster/release/package.py": {"name"},
    "model/mup.py": {"config.head_dim"},
    "model/presets.py": {"math.log(above / below)"},
    "model/trainer.py": {"seconds"},
}  # fmt: skip


def is_constant(node: ast.expr, known: set[str]) -> bool:
    """A text in the code, a name in capitals, or the variable of a loop over such."""
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Name):
        return node.id.isupper() or node.id in known
    return isinstance(node, ast.Attribute) and node.attr.isupper()


def constants(scope: ast.AST) -> set[str]:
    """The variables of a function that run over constants alone: `for name in FILES`."""
    loops: list[tuple[ast.expr, ast.expr]] = []
    for node in ast.walk(scope):
        if isinstance(node, ast.For | ast.comprehension):
            loops.append((node.target, node.iter))
    found: dict[str, bool] = {}
    for target, over in loops:
        items = over.elts if isinstance(over, ast.Tuple | ast.List) else [over]
        fine = all(is_constant(item, set()) for item in items)
        for name in (n.id for n in ast.walk(target) if isinstance(n, ast.Name)):
            found[name] = found.get(name, True) and fine
    stored = {
        n.id
        for node in ast.walk(scope)
        for t in (node.targets if isinstance(node, ast.Assign) else [])
        for n in ast.walk(t)
        if isinstance(n, ast.Name)
    }
    arguments = {a.arg for node in ast.walk(scope) if isinstance(node, ast.arguments) for a in node.args}
    return {name for name, fine in found.items() if fine} - stored - arguments


def paths_of(trees: dict[str, ast.AST]) -> set[str]:
    """Names that stand for a path anywhere: annotated so, or given a path's value."""
    found = {"folder", "parent", "root", "scratch", "out", "cache_root", "Path"}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation and "Path" in ast.unparse(node.annotation):
                target = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target).rpartition(".")[2]
                found.add(target)
            if isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns).startswith("Path"):
                found.add(node.name)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and is_path(node.value, {"Path"}):
                found |= {ast.unparse(t).rpartition(".")[2] for t in node.targets}
    return found


def is_path(node: ast.expr, paths: set[str]) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Div) and is_path(node.left, paths)
    if isinstance(node, ast.BoolOp):
        return any(is_path(value, paths) for value in node.values)
    if isinstance(node, ast.Subscript):
        return ast.unparse(node) in ("found[1]",)
    if isinstance(node, ast.Call):
        return is_path(node.func, paths) or (isinstance(node.func, ast.Attribute) and is_path(node.func.value, paths))
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in paths


def joins(tree: ast.AST, paths: set[str]) -> Iterator[tuple[int, str]]:
    """(line, name) of each join of a path with a name that isn't a constant."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    scopes: list[ast.AST] = [tree, *functions]
    known_at: dict[int, set[str]] = {}
    for scope in scopes:  # the innermost last
        known_at |= dict.fromkeys(map(id, ast.walk(scope)), constants(scope))
    for node in ast.walk(tree):
        names: list[ast.expr] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and is_path(node.left, paths):
            names = [node.right]
        elif isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            if function.rpartition(".")[2] in LEADS_UP or function == "os.path.join":
                names = list(node.args)
            elif function == "Path":
                names = node.args[1:]
        for name in names:
            if not is_constant(name, known_at.get(id(node), set())):
                yield node.lineno, ast.unparse(name)


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.AST]:
    files = [f for room in ROOMS for f in sorted((ROOT / room).rglob("*.py"))]
    return {f.relative_to(ROOT).as_posix(): ast.parse(f.read_text(encoding="utf-8")) for f in files}


def test_no_path_is_joined_with_a_name_that_a_file_may_have_said(trees: dict[str, ast.AST]) -> None:
    paths = paths_of(trees)
    found = {(file, name): line for file, tree in trees.items() for line, name in joins(tree, paths)}
    strange = [f"{file}:{line}: {name}" for (file, name), line in found.items() if name not in OURS.get(file, ())]
    assert strange == [], "use model.inside.inside(folder, name), or say in OURS whose name it is"
    gone = [f"{file}: {name}" for file, names in OURS.items() for name in names if (file, name) not in found]
    assert gone == [], "these are joined no longer: take them out of OURS"


@pytest.mark.parametrize(
    ("code", "strange"),
    [
        ("def f(folder: Path, s): return folder / s['file']", True),
        ("def f(folder: Path, name): return folder / name", True),
        ("def f(folder: Path, name): return folder / 'a' / name", True),
        ("def f(folder: Path, name): return folder / f'{name}.bin'", True),
        ("def f(folder: Path, name): return folder.joinpath(name)", True),
        ("def f(folder: Path, name): return os.path.join(folder, name)", True),
        ("def f(folder: Path, name): return Path(folder, name)", True),
        ("def f(folder: Path, name): return folder.with_name(name)", True),
        ("def f(x): return Path(x) / x", True),
        ("def f(folder: Path, names):\n for name in names: folder / name", True),
        ("def f(folder: Path):\n for name in FILES: folder / name\n for name in other: folder / name", True),
        ("def f(folder: Path): return folder / 'config.json'", False),
        ("def f(folder: Path): return folder / CONFIG", False),
        ("def f(folder: Path): return [folder / n for n in ('a', CONFIG)]", False),
        ("def f(folder: Path):\n for name in FILES: folder / name", False),
        ("def f(folder: Path, name): return inside(folder, name)", False),
        ("def f(count, total): return count / total", False),
    ],
)  # fmt: skip
def test_such_joins_are_seen(code: str, strange: bool) -> None:
    tree = ast.parse(code)
    assert bool(list(joins(tree, paths_of({"": tree})))) is strange


def test_the_list_names_files_that_are_there() -> None:
    assert [file for file in OURS if not Path(ROOT, file).is_file()] == []
