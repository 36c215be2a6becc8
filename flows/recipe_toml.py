"""The text of a recipe: TOML files that extend one another, and `--set key=value` on top.

    extends = "base.toml"      relative to the file; chains; tables merge deeply, lists of tables are replaced
    --set train.lr=3e-4        the value is TOML, else a text; `sources.0.weight=2` or `sources.NAME.weight=2`

Every value remembers where it was written, so that an error names the file and the line, or the `--set`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, time
from pathlib import Path
from typing import Any

from cluster.errors import nearest
from cluster.masking import masked, put_away_all
from flows.recipe_errors import Loc, RecipeError, kind_of

SHIPPED = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Origin:
    """Where a value was written."""

    source: str  # a file as the person named it, or "--set key=value"
    line: int | None = None
    raw: str | None = None  # a --set's value as it was typed
    order: int = 0  # of the file among the files that extend one another, lowest first; of any --set: above them

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}, line {self.line}"


@dataclass
class Layers:
    """The merged values of a recipe and the origin of each."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Loc, Origin] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)

    def origin(self, loc: Loc) -> Origin:
        """The origin of the value at `loc`, or of the nearest table around it."""
        for end in range(len(loc), 0, -1):
            if loc[:end] in self.origins:
                return self.origins[loc[:end]]
        return Origin(self.name)

    def value(self, loc: Loc) -> Any:
        here: Any = self.values
        for part in loc:
            here = here[part]
        return here

    def key(self, loc: Loc) -> str:
        """The dotted key a person would write: a list entry by its name where it has one."""
        words: list[str] = []
        here: Any = self.values
        for part in loc:
            try:
                here = here[part]
            except (KeyError, IndexError, TypeError):
                here = None
            named = isinstance(part, int) and isinstance(here, dict) and isinstance(here.get("name"), str)
            words.append(here["name"] if named and isinstance(here, dict) else str(part))
        return ".".join(words)


def find_recipe(name: str) -> Path:
    """A recipe by path, or by the name of one that ships (`demo`, `demo.toml`)."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = {p.stem: p for p in sorted(SHIPPED.glob("*.toml"))}
    if path.parent == Path() and path.name.removesuffix(".toml") in shipped:
        return shipped[path.name.removesuffix(".toml")]
    if path.is_dir():
        raise RecipeError(name, "is a folder; name a recipe file, such as demo or my.toml.")
    beside = [str(p) for p in sorted(path.parent.glob("*.toml"))] if path.parent.is_dir() else []
    close = nearest(path.stem, shipped) or nearest(name, beside)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise RecipeError(
        name,
        f"there is no such recipe.{hint} Recipes that ship: {', '.join(shipped) or 'none'}; or give a path.",
    )


def read_layers(name: str, overrides: Sequence[str] = ()) -> Layers:
    """Reads a recipe with everything it extends, then applies the overrides in order."""
    layers = Layers(name=name)
    _read_file(find_recipe(name), layers, chain=[])
    for text in overrides:
        _set(layers, text)
        layers.overrides.append(masked(text))
    return layers


def _shown(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _read_file(path: Path, layers: Layers, chain: list[Path]) -> None:
    real, shown = path.resolve(), _shown(path)
    if real in chain:
        circle = " -> ".join(_shown(p) for p in [*chain[chain.index(real) :], real])
        raise RecipeError(shown, f"extends itself in a circle: {circle}. Remove one of these `extends`.")
    text = _read_text(path, shown)
    try:
        values = put_away_all(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(shown, _syntax(str(error), text)) from None
    base = values.pop("extends", None)
    if base is not None:
        if not isinstance(base, str):
            raise RecipeError(shown, f"extends must be one file name in quotes, not {kind_of(base)}.")
        below = path.parent / base
        if not below.is_file() and base.removesuffix(".toml") in {p.stem for p in SHIPPED.glob("*.toml")}:
            below = SHIPPED / f"{base.removesuffix('.toml')}.toml"
        if not below.is_file():
            names = [p.name for p in path.parent.glob("*.toml")] + [p.stem for p in SHIPPED.glob("*.toml")]
            close = nearest(Path(base).name, names)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise RecipeError(shown, f'extends = "{base}": there is no {_shown(below)} (relative to this file).{hint}')
        _read_file(below, layers, [*chain, real])
    _merge(layers, (), layers.values, values, shown, _lines(text))
    layers.files.append(path)


def _read_text(path: Path, shown: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(shown, f"is not UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise RecipeError(shown, f"cannot be read: {error.strerror}.") from None


def _syntax(message: str, text: str) -> str:
    where = re.search(r"line (\d+)", message)
    lines = text.splitlines()
    if where and int(where[1]) <= len(lines):
        return f"is not valid TOML: {message}:\n    {lines[int(where[1]) - 1].strip()}"
    return f"is not valid TOML: {message}"


def _merge(
    layers: Layers, at: Loc, below: dict[str, Any], above: dict[str, Any], shown: str, lines: dict[Loc, int]
) -> None:
    for key, value in above.items():
        loc = (*at, key)
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge(layers, loc, below[key], value, shown, lines)
        else:
            for old in [o for o in layers.origins if o[: len(loc)] == loc]:
                del layers.origins[old]
            below[key] = value
            for inner in _locs(loc, value):
                layers.origins[inner] = Origin(shown, lines.get(inner), order=len(layers.files))


def _locs(loc: Loc, value: Any) -> list[Loc]:
    found = [loc]
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        found += _locs((*loc, key), inner)
    return found


def _lines(text: str) -> dict[Loc, int]:
    """The line of each key, by a light scan of headers and `key =`: right for TOML written by hand."""
    found: dict[Loc, int] = {}
    counts: dict[Loc, int] = {}
    table: Loc = ()
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*(\[\[?)\s*([^\[\]#]+?)\s*\]", line)
        if header:
            table = tuple(p.strip().strip("\"'") for p in header[2].split("."))
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            found.setdefault(table, number)
            continue
        key = re.match(r"""\s*([A-Za-z0-9_.\-"']+)\s*=""", line)
        if key:
            parts = tuple(p.strip("\"'") for p in key[1].split("."))
            found.setdefault((*table, *parts), number)
    return found


# --- --set ----------------------------------------------------------------------------------------------


def parse_value(text: str) -> Any:
    """`3e-4`, `true`, `[1, 2]`, `"x"` as TOML; anything else is a text as it stands."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = parsed["value"]
    return text if len(parsed) != 1 or isinstance(value, date | time) else value


def _set(layers: Layers, text: str) -> None:
    shown = f"--set {masked(text)}"
    key, equals, raw = text.partition("=")
    parts = parts_named = [p.strip() for p in key.split(".")]
    if not equals or not all(parts):
        raise RecipeError(shown, "write --set KEY=VALUE with a dotted key, such as --set train.lr=3e-4.")
    raw = raw.strip()
    here: Any = layers.values
    loc: tuple[Any, ...] = ()
    while True:
        step, used = _entry(here, parts, shown, layers.key(loc))
        parts = parts[used:]
        loc = (*loc, step)
        if not parts:
            break
        inner = here.get(step) if isinstance(step, str) else here[step]
        if not isinstance(inner, dict | list):
            if inner not in (None, True, False):
                raise RecipeError(shown, f"{layers.key(loc)} is {kind_of(inner)}, not a table with keys of its own.")
            inner = here[step] = {}
            layers.origins[loc] = Origin(shown, order=len(layers.files))
        here = inner
    value = put_away_all(parse_value(raw), parts_named[-1])
    for old in [o for o in layers.origins if o[: len(loc)] == loc]:
        del layers.origins[old]
    here[step] = value
    for inner in _locs(loc, value):
        layers.origins[inner] = Origin(shown, None, masked(raw) if inner == loc else None, len(layers.files))


def _entry(entries: Any, parts: list[str], shown: str, table: str) -> tuple[Any, int]:
    """(the next key, the parts it used up): in a list of tables a number, or a name, which may hold dots."""
    if not isinstance(entries, list):
        return parts[0], 1
    if parts[0].isdigit() and int(parts[0]) < len(entries):
        return int(parts[0]), 1
    names = [str(e.get("name")) if isinstance(e, dict) else str(i) for i, e in enumerate(entries)]
    for used in range(len(parts), 0, -1):
        if ".".join(parts[:used]) in names:
            return names.index(".".join(parts[:used])), used
    close = nearest(parts[0], names)
    hint = f" Did you mean {table}.{close[0]}?" if close else ""
    raise RecipeError(
        shown,
        f"{table} has no entry {parts[0]}.{hint} Its entries: {', '.join(names) or 'none'} (or 0, 1, ...).",
    )
