"""Stage `corpus`: the recipe's [[sources]] become documents with id, source and text.

    sources ── Ray Data: read, one task a part ──▶ documents-00000.parquet …   (id, source, text)
                                              ├─▶ quarantine.jsonl            (source, where, reason, excerpt)
                                              └─▶ passed-over.jsonl           (source, name, reason)

Files that are no data or can't be read (.DS_Store, a dangling link, …) are passed over: counted and named, and no part
of the fingerprint (cluster/store/walk.py has the reasons). What can't become a document (broken UTF-8, a line beyond
all measure, a truncated archive, …) is counted and quarantined by its reason, and the rest goes through: see
readers/reading.py. Documents come out in the order of the recipe's sources, their files' names and their lines.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.data.readers import installed
from cluster.data.readers.sources import Source, find_files, plan, read_part, survey_files
from cluster.data.shards import ShardWriter
from cluster.data.streaming import Check, stop_check, stream
from cluster.data.summaries import CorpusSummary
from cluster.errors import UserError
from cluster.stage import Stage

if TYPE_CHECKING:
    import pyarrow as pa

    from cluster.stage import Workspace
    from cluster.store.walk import Passed

__all__ = ["STAGE", "CorpusConfig", "Source", "external", "run"]


class CorpusConfig(BaseModel):
    """What is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: tuple[Source, ...] = Field(min_length=1)
    max_document_bytes: int = Field(
        10_000_000, ge=1_000, description="longer lines, files and texts are quarantined as too_long"
    )

    @field_validator("sources")
    @classmethod
    def _unique(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        names = Counter(source.name for source in sources)
        if twice := [name for name, count in names.items() if count > 1]:
            raise UserError(f"two sources are named {twice[0]!r}: each needs a name of its own")
        return sources


def external(config: CorpusConfig) -> dict[str, str]:
    """A digest of each source's files that are read: their names and content.

    Raises:
        UserError: a path that matches nothing, or nothing of a known kind; a package that isn't installed.
    """
    from cluster.store.source import digest_files

    digests = {}
    for source in config.sources:
        if source.path.startswith(installed.SCHEME):
            digests[source.name] = installed.digest(source.path)
        else:
            digests[source.name] = digest_files([one.file for one in find_files(source)])
    return digests


@dataclass
class _Tally:
    documents: int = 0
    bytes: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    first_bad: str = ""
    full: bool = False  # a document came that went over a cap
    unnamed: int = 0  # documents that are called by their places

    def room(self, source: Source, sizes: list[int]) -> int:
        """How many of the next documents still fit the source's caps."""
        count = len(sizes)
        if source.max_documents is not None:
            count = min(count, source.max_documents - self.documents)
        if source.max_bytes is not None:
            total = self.bytes
            for index, size in enumerate(sizes[:count]):
                total += size
                if total > source.max_bytes:
                    return index
        return count


def run(workspace: Workspace) -> CorpusSummary:
    """Read all sources into the workspace.

    Raises:
        ValueError: a source that gives not one document.
    """
    config: CorpusConfig = workspace.config
    plans = {source.name: plan(source, config.max_document_bytes) for source in config.sources}
    before: list[int] = []  # bytes before each part
    total = 0
    for number, part in enumerate(part for parts in plans.values() for part in parts):
        part["number"] = number
        before.append(total)
        total += part["bytes"]
    tallies = {source.name: _Tally() for source in config.sources}
    writer = ShardWriter(workspace.out)
    with (workspace.out / "quarantine.jsonl").open("w", encoding="utf-8") as quarantine:
        for table in _tables(config, plans, tallies, stop_check(workspace)):
            documents = _split(table, tallies, quarantine)
            writer.write(documents)
            done = before[table.column("part")[-1].as_py()] + table.column("read")[-1].as_py()
            workspace.progress(done, total, f"{writer.documents:,} documents  {writer.bytes / 1e6:,.1f} MB")
    writer.close()
    for source in config.sources:
        _check_source(source, tallies[source.name])
    unnamed = {s.name: tallies[s.name].unnamed for s in config.sources if s.id_field and tallies[s.name].unnamed}
    return replace(_summary(workspace, writer, plans, tallies, _pass_over(workspace, config)), unnamed=unnamed)


def _pass_over(workspace: Workspace, config: CorpusConfig) -> dict[str, list[Passed]]:
    """What is passed over of each source, written to passed-over.jsonl."""
    passed = {s.name: survey_files(s)[1] for s in config.sources if not s.path.startswith(installed.SCHEME)}
    lines = [{"source": s, "name": one.name, "reason": one.reason} for s, those in passed.items() for one in those]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (workspace.out / "passed-over.jsonl").write_text(text, encoding="utf-8")
    if lines:
        workspace.events.table("passed over", list(lines[0]), [list(line.values()) for line in lines])
    return passed


def _tables(
    config: CorpusConfig, plans: dict[str, list[dict[str, Any]]], tallies: dict[str, _Tally], check: Check
) -> Iterator[pa.Table]:
    """All sources' tables in order. A capped source is a stream of its own, which ends at its cap."""
    for capped, group in groupby(config.sources, key=lambda s: s.name if s.capped else ""):
        sources = list(group)
        parts = [part for source in sources for part in plans[source.name]]
        for table in stream(read_part, parts, check=check):
            if not table.num_rows:
                continue
            if not capped:
                yield table
                continue
            source, tally = sources[0], tallies[capped]
            cut = _cut(table, source, tally)
            if cut.num_rows:
                yield cut
            if cut.num_rows < table.num_rows:
                tally.full = True
                break


def _cut(table: pa.Table, source: Source, tally: _Tally) -> pa.Table:
    """The rows before the first document that goes over the source's caps."""
    import numpy as np
    import pyarrow.compute as pc

    sizes = pc.binary_length(table.column("text")).to_pylist()  # type: ignore
    places = np.flatnonzero([size is not None for size in sizes])
    kept = tally.room(source, [size for size in sizes if size is not None])
    return table if kept == len(places) else table.slice(0, int(places[kept]))


def _split(table: pa.Table, tallies: dict[str, _Tally], quarantine: Any) -> pa.Table:
    """Count a table's rows, write its bad records to the quarantine, and return its documents."""
    import pyarrow.compute as pc

    good = pc.is_null(table.column("reason"))  # type: ignore
    documents = table.filter(good)
    sizes = pc.binary_length(documents.column("text")).to_pylist()  # type: ignore
    rows = zip(*(documents.column(name).to_pylist() for name in ("source", "id", "where")), sizes, strict=True)
    for source, name, where, size in rows:
        tallies[source].documents += 1
        tallies[source].bytes += size
        tallies[source].unnamed += name == f"{source}/{where}"
    bad = table.filter(pc.invert(good)).select(["source", "where", "reason", "excerpt"])  # type: ignore
    for row in bad.to_pylist():
        tally = tallies[row["source"]]
        tally.quarantined[row["reason"]] += 1
        tally.first_bad = tally.first_bad or f"{row['where']}: {row['reason']}: {row['excerpt']!r}"
        quarantine.write(json.dumps(row, ensure_ascii=False) + "\n")
    return documents


def _check_source(source: Source, tally: _Tally) -> None:
    if tally.documents and source.id_field and tally.unnamed == tally.documents:
        raise UserError(
            f"Source {source.name!r} ({source.path}): none of its {tally.documents:,} documents has the id_field "
            f"{source.id_field!r}. Set it to the field that names a document, or leave it out."
        )
    if tally.documents:
        return
    counts = ", ".join(f"{n:,} {reason}" for reason, n in tally.quarantined.most_common())
    hint = ""
    if tally.quarantined.keys() & {"missing_text", "not_text"}:
        hint = f" Its text_field is {source.text_field!r}: set it to the field that holds the text."
    found = f"all its records were quarantined ({counts}; first {tally.first_bad})" if counts else "it is empty"
    if tally.full:
        before = f", and before it {found}" if counts else ""
        found = f"the first has more bytes than max_bytes = {source.max_bytes}{before}"
    raise UserError(f"Source {source.name!r} ({source.path}) gives no document: {found}.{hint}")


def _summary(
    workspace: Workspace,
    writer: ShardWriter,
    plans: dict[str, Any],
    tallies: dict[str, _Tally],
    passed: dict[str, list[Passed]],
) -> CorpusSummary:
    quarantined: Counter[str] = Counter()
    for tally in tallies.values():
        quarantined.update(tally.quarantined)
    sources = {
        name: {
            "documents": tally.documents,
            "bytes": tally.bytes,
            "files": sum(len(part["files"]) for part in plans[name]),
            "quarantined": dict(sorted(tally.quarantined.items())),
            "passed_over": len(passed.get(name, ())),
        }
        for name, tally in tallies.items()
    }
    rows = [[name, why, n] for name, tally in tallies.items() for why, n in sorted(tally.quarantined.items())]
    if rows:
        workspace.events.table("quarantined", ["source", "reason", "records"], rows)
    workspace.events.metrics(
        0,
        {
            "corpus/documents": float(writer.documents),
            "corpus/bytes": float(writer.bytes),
            "corpus/quarantined": float(quarantined.total()),
        },
    )
    return CorpusSummary(
        documents=writer.documents,
        bytes=writer.bytes,
        shards=writer.shards,
        sources=sources,
        quarantined=dict(sorted(quarantined.items())),
        passed_over=_named(passed),
    )


def _named(passed: dict[str, list[Passed]]) -> dict[str, list[str]]:
    """What is passed over, by its reason, as source/name."""
    names: dict[str, list[str]] = {}
    for source, those in passed.items():
        for one in those:
            names.setdefault(one.reason, []).append(f"{source}/{one.name}")
    return dict(sorted(names.items()))


STAGE = Stage("corpus", "corpus", 2, CorpusConfig, run, CorpusSummary, external=external)
