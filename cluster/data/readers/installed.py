"""The embedded default: text that a fresh machine has after the install, with nothing downloaded.

    installed://prose?packages=stdlib,torch,numpy&max_mb=20    documentation: docstrings, shipped documents
    installed://code?packages=stdlib,torch,numpy&max_mb=20     the modules' sources

Packages are distributions (as pip names them) and `stdlib`; without `packages`, the standard library and what tokenmill
itself depends on. Files are found through importlib.metadata and read as text: nothing is imported or executed. Tests,
vendored copies, generated modules and tables of data are left out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from cluster.data.readers import docstrings
from cluster.data.readers.reading import Record
from cluster.errors import UserError, nearest

SCHEME = "installed://"
STDLIB = "stdlib"
PART_BYTES = 4 << 20  # source files that one task reads
MAX_FILE_BYTES = 400_000  # larger modules are tables more often than programs
MIN_CHARS = 200  # shorter documents teach nothing
MIN_DOCUMENTED = 0.15  # modules below it hold 14 % of the prose and cost 45 % of the time
DOCUMENTS = (".md", ".rst", ".txt")
TOPICS = "pydoc_data/topics.py"  # the language reference, as one dict of strings

# fmt: off
_SKIPPED_FOLDERS = frozenset({
    "test", "tests", "testing", "_testing", "idlelib", "turtledemo", "lib2to3", "ensurepip", "encodings",
    "site-packages", "dist-packages", "__pycache__", "node_modules", "static", "build", "benchmarks",
    "_vendor", "vendor", "vendored", "_vendored", "vendored_packages", "third_party", "thirdparty",
    "thirdparty_files", "externals", "_external", "_extern", "extern", "generated", "protos", "licenses",
})
# fmt: on
_SKIPPED_FILES = re.compile(
    r"(test_.*|.*_tests?|conftest|.*_pb2|.*_pb2_grpc|.*\.min|_?generated_.*)\.py"
    r"|(licen[cs]e|copying|notice|authors|contributors|requirements|entry_points|top_level|sources|cmakelists"
    r"|thirdparty|third_party|.*licenses?)[^/]*",
    re.IGNORECASE,
)
_GENERATED = re.compile(r"@generated|auto-?generated|automatically generated|do not edit", re.IGNORECASE)


@dataclass(frozen=True)
class Installed:
    """A parsed `installed://` address."""

    what: Literal["prose", "code"]
    packages: tuple[str, ...]
    max_bytes: int | None  # of text, over all packages


class SourceFile(NamedTuple):
    """One file of a package: `digest` is the installer's hash, or the size where there is none."""

    package: str
    name: str  # relative to the folder that holds the package
    size: int
    digest: str


def parse(url: str) -> Installed:
    """The parts of an address.

    Raises:
        ValueError: not prose or code, an unknown parameter, a package that is not installed.
    """
    parts = urlsplit(url)
    what = parts.netloc
    if parts.scheme != "installed" or what not in ("prose", "code") or parts.path.strip("/"):
        raise UserError(
            f"{url!r}: the embedded sources are installed://prose and installed://code, optionally with "
            "?packages=stdlib,numpy&max_mb=20."
        )
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := set(query) - {"packages", "max_mb"}:
        raise UserError(f"{url!r}: unknown parameter {sorted(unknown)[0]!r}; known are packages and max_mb.")
    packages = tuple(p.strip() for p in query.get("packages", "").split(",") if p.strip()) or default_packages()
    try:
        max_bytes = int(float(query["max_mb"]) * 1e6) if "max_mb" in query else None
    except (ValueError, OverflowError):  # no number, or infinity
        max_bytes = 0
    if max_bytes is not None and max_bytes <= 0:
        raise UserError(f"{url!r}: max_mb is {query['max_mb']!r}; it is a number of megabytes above 0.")
    for package in packages:
        _root(package)
    return Installed(what, tuple(dict.fromkeys(packages)), max_bytes)


def default_packages() -> tuple[str, ...]:
    """The standard library and tokenmill's direct dependencies that are installed."""
    try:
        requirements = metadata.requires("tokenmill") or []
    except metadata.PackageNotFoundError:
        requirements = []
    names = [re.split(r"[^A-Za-z0-9._-]", r, maxsplit=1)[0] for r in requirements if "extra ==" not in r]
    return (STDLIB, *(n for n in names if _is_installed(n)))


def digest(url: str) -> str:
    """A hash of everything that decides what the address gives: its parameters, and each file's hash."""
    source = parse(url)
    state = hashlib.sha256(f"{source.what} {source.max_bytes} {sys.version_info[:3]}\n".encode())
    for file in files(source):
        state.update(f"{file.package}/{file.name} {file.digest}\n".encode())
    return state.hexdigest()


def files(source: Installed) -> list[SourceFile]:
    """The files that are read, in an order that mixes the packages and depends on their names alone."""
    suffixes = (".py",) if source.what == "code" else (".py", *DOCUMENTS)
    found = [f for p in source.packages for f in _package_files(p) if f.name.endswith(suffixes)]
    if source.what == "prose":
        for package in source.packages:
            if package != STDLIB:
                found.append(SourceFile(package, "METADATA", 10_000, metadata.version(package)))
    else:
        found = [f for f in found if f.name != TOPICS]
    found.sort(key=lambda f: hashlib.blake2b(f"{f.package}/{f.name}".encode(), digest_size=8).digest())
    if source.what == "code" and source.max_bytes is not None:
        total, kept = 0, []
        for file in found:
            total += file.size
            if total > source.max_bytes:
                break
            kept.append(file)
        return kept
    return found


def plan(url: str) -> list[dict[str, Any]]:
    """Units of parallel work, as plain JSON for `read`.

    The size of a part's text is bounded by its `budget`: the address's max_mb, shared out by source bytes, so that no
    part waits for another.
    """
    source = parse(url)
    found = files(source)
    total = sum(f.size for f in found)
    groups: list[list[SourceFile]] = []
    size = PART_BYTES
    for file in found:
        if size >= PART_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.size
    versions = {p: _version(p) for p in source.packages}
    parts = []
    for group in groups:
        size = sum(f.size for f in group)
        parts.append(
            {
                "what": source.what,
                "files": [[f.package, f.name] for f in group],
                "versions": {f.package: versions[f.package] for f in group},
                "budget": None if source.max_bytes is None else int(source.max_bytes * size / total),
                "bytes": size,
            }
        )
    return parts


def read(part: dict[str, Any], limit: int) -> Iterator[tuple[str, Record]]:
    """(document name "package/module", record) for a part of a plan.

    Raises:
        RuntimeError: this machine has another version of a package than the one that planned.
    """
    for package, version in part["versions"].items():
        if _version(package) != version:
            raise RuntimeError(
                f"installed://: {package} is {version} where the run was started and {_version(package)} "
                "on a worker: install the same versions on every node, or use a source that all can read."
            )
    spent, budget = 0, part["budget"]
    for package, name in part["files"]:
        for document, text in _documents(package, name, part["what"]):
            size = len(text.encode("utf-8", "surrogatepass"))
            if len(text) < MIN_CHARS or size > limit:
                continue
            if budget is not None and spent + size > budget:
                return
            spent += size
            yield document, Record(0, text)


def _documents(package: str, name: str, what: str) -> Iterator[tuple[str, str]]:
    if name == "METADATA":
        info = metadata.metadata(package)
        description = info["Description"] or info.json.get("description") or ""
        yield f"{package}/METADATA", str(description)
        return
    data = _bytes(package, name)
    if data is None:
        return
    if not name.endswith(".py"):
        try:
            yield f"{package}/{name}", data.decode("utf-8")
        except UnicodeDecodeError:
            return
        return
    text = docstrings.decode(data)
    if text is None:
        return
    module = module_name(name)
    if what == "code":
        if not _GENERATED.search(text[:2000]) and not _is_table(text):
            yield f"{package}/{module}", text
    elif name == TOPICS:
        for topic, body in docstrings.topics(text):
            yield f"{package}/{module}:{topic}", body
    elif _documented(text) >= MIN_DOCUMENTED:
        for suffix, body in docstrings.prose(text, module):
            yield f"{package}/{module}{suffix}", body


def read_source(file: SourceFile) -> str | None:
    """A module's text, or None if it can't be read or decoded."""
    data = _bytes(file.package, file.name)
    return None if data is None else docstrings.decode(data)


def _bytes(package: str, name: str) -> bytes | None:
    try:
        return (_root(package) / name).read_bytes()
    except OSError:  # listed, and removed from an image to make it smaller
        return None


def module_name(name: str) -> str:
    """ "json/decoder.py" → "json.decoder"; a package's __init__.py → the package."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _documented(text: str) -> float:
    """The share of a module that stands in triple quotes, as a cheap estimate."""
    return max(sum(map(len, text.split(quotes)[1::2])) for quotes in ('"""', "'''")) / max(len(text), 1)


def _is_table(text: str) -> bool:
    """Minified, or more numbers than words."""
    sample = text[:20_000]
    lines = text.count("\n") + 1
    letters = sum(map(str.isalpha, sample))
    solid = len(sample) - sample.count(" ") - sample.count("\n")
    return len(text) / lines > 200 or letters < 0.5 * solid


def _package_files(package: str) -> Iterator[SourceFile]:
    for name, size, hashed in _stdlib_files() if package == STDLIB else _recorded(package):
        *folders, last = name.split("/")
        if name.startswith(("..", "/")) or _SKIPPED_FILES.fullmatch(last):
            continue
        if any(f in _SKIPPED_FOLDERS or f.endswith((".dist-info", ".data", ".libs")) for f in folders):
            continue
        if name == TOPICS or MIN_CHARS <= size <= MAX_FILE_BYTES:
            yield SourceFile(package, name, size, hashed or str(size))


def _recorded(package: str) -> Iterator[tuple[str, int, str]]:
    distribution = metadata.distribution(package)
    record = distribution.read_text("RECORD")
    if record:
        for name, hashed, size in csv.reader(io.StringIO(record)):
            if size and name.endswith((".py", *DOCUMENTS)):
                yield name, int(size), hashed
        return
    root = _root(package)
    for path in distribution.files or ():  # packages of an operating system keep no RECORD
        if path.suffix in (".py", *DOCUMENTS) and (root / path).is_file():
            yield str(path), (root / path).stat().st_size, ""


def _stdlib_files() -> Iterator[tuple[str, int, str]]:
    root = _root(STDLIB)
    for folder, folders, names in root.walk() if sys.version_info >= (3, 12) else _walk(root):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS)
        for name in sorted(names):
            if name.endswith(".py"):
                path = folder / name
                yield path.relative_to(root).as_posix(), path.stat().st_size, ""


def _walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    import os

    for folder, folders, names in os.walk(root):
        yield Path(folder), folders, names


@cache
def _root(package: str) -> Path:
    if package == STDLIB:
        return Path(sysconfig.get_paths()["stdlib"])
    try:
        return Path(str(metadata.distribution(package).locate_file("")))
    except (metadata.PackageNotFoundError, ValueError):
        raise UserError(_not_installed(package)) from None


@cache
def _version(package: str) -> str:
    return sysconfig.get_python_version() if package == STDLIB else metadata.version(package)


def _is_installed(package: str) -> bool:
    try:
        return bool(_root(package))
    except ValueError:
        return False


def _not_installed(package: str) -> str:
    names = sorted({str(d.name) for d in metadata.distributions()} | {STDLIB})
    near = nearest(package, names, 3)
    by_import = metadata.packages_distributions().get(package, [])
    hint = f" Did you mean {', '.join(dict.fromkeys([*by_import, *near]))}?" if by_import or near else ""
    return f"installed://: no package {package!r} is installed here (names as in `pip list`, or stdlib).{hint}"
