"""Stage `filter`: documents worth learning from, each once.

    corpus ══ Ray Data: normalise → quality rules → hash, MinHash ══▶ candidates (driver's disk, in order)
           ── driver: group equal hashes and bands, smallest id stays ──▶ documents-00000.parquet …
                                                                     └─▶ removed.parquet (id, source, reason, detail)

Every removed document is named with its reason. The result doesn't depend on the number of workers.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.data.filters.normalise import Normalisation
from cluster.data.filters.registry import AnyThresholds, RuleName, Thresholds, filters, judge
from cluster.data.shards import RowGroup, ShardWriter, read_documents, read_group, row_groups
from cluster.data.streaming import stop_check, stream
from cluster.data.summaries import FilterSummary
from cluster.errors import UserError, did_you_mean
from cluster.stage import Stage

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from cluster.data.filters.contract import Filter
    from cluster.stage import Workspace
    from cluster.store.artifact import Artifact

COPIES = ("exact_duplicate", "near_duplicate")  # reasons whose detail is the document that stays
ALL = "*"  # in a table by source: every source that isn't named


class DedupConfig(BaseModel):
    """Which documents count as copies of another. Defaults: FineWeb's MinHash (14 bands of 8, 5 words)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exact: bool = Field(default=True, description="drop documents whose text is the same")
    near: bool = Field(default=True, description="drop documents that MinHash-LSH takes for near copies")
    bands: int = Field(default=14, ge=1, le=512, description="more: finds less similar pairs")
    rows: int = Field(
        default=8, ge=1, le=64, description="more: asks for more similarity; threshold about (1/bands)^(1/rows)"
    )
    ngram: int = Field(default=5, ge=1, le=32, description="words in a shingle")


class FilterConfig(BaseModel):
    """How documents are normalised, judged and made unique."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    normalise: Normalisation | dict[str, Normalisation] = Field(
        "text", description='"text", "code" or "none", or a table by source: { code = "code", "*" = "text" }'
    )
    rules: tuple[RuleName, ...] | dict[str, tuple[RuleName, ...]] = Field(
        ("gopher",), description='rule sets, or a table by source: { code = ["code"], "*" = ["gopher"] }'
    )
    thresholds: AnyThresholds = Field(default_factory=Thresholds)
    dedup: DedupConfig = DedupConfig()


def by_source(value: Any, source: str, default: Any) -> Any:
    """A setting's value for a source: its own, that of "*", or the default."""
    if isinstance(value, Mapping):
        return value.get(source, value.get(ALL, default))
    return value


def check_sources(config: FilterConfig, sources: list[str]) -> None:
    """The tables by source name sources that exist.

    Raises:
        ValueError: naming the table, the key and the nearest source.
    """
    for field in ("normalise", "rules"):
        value = getattr(config, field)
        for name in value if isinstance(value, Mapping) else ():
            if name != ALL and name not in sources:
                raise UserError(
                    f"[filter.{field}] names the source {name!r}, but the sources are "
                    f'{", ".join(map(repr, sources))} (or "*" for all others).{did_you_mean(name, sources)}'
                )


def run(workspace: Workspace) -> FilterSummary:
    """Filter the input `corpus` into the workspace."""
    config: FilterConfig = workspace.config
    corpus = workspace.inputs["corpus"]
    sources = corpus.summary.get("sources", {})
    check_sources(config, list(sources))
    tally = _Tally(list(sources))
    with tempfile.TemporaryDirectory(dir=workspace.out.parent, prefix="candidates-") as folder:
        candidates = Path(folder)
        fingers = _judge_all(workspace, corpus, candidates, tally)
        stays, exact = fingers.duplicates(config.dedup)
        writer, position = ShardWriter(workspace.out), 0
        for table in read_documents(candidates):
            part = slice(position, position + table.num_rows)
            position += table.num_rows
            writer.write(tally.drop_copies(table, part, stays[part], exact[part], fingers.ids))
    writer.close()
    tally.write(workspace.out / "removed.parquet")
    tally.check()
    return tally.summary(workspace, writer)


def _judge_all(workspace: Workspace, corpus: Artifact, folder: Path, tally: _Tally) -> _Fingers:
    """Stream all documents through the workers; those that pass are written to `folder`, in order."""
    config: FilterConfig = workspace.config
    groups = [group for group in row_groups(corpus.path()) if group.rows]
    total = sum(group.rows for group in groups)
    fingers, writer = _Fingers(), ShardWriter(folder)
    # The filters themselves go to the workers, so that one that only this process knows works there too.
    chosen = {
        source: filters(by_source(config.rules, source, ("gopher",)), config.thresholds)
        for source in (*corpus.summary.get("sources", {}), ALL)
    }
    for table in stream(
        judge_group, groups, corpus, config.normalise, chosen, config.dedup, check=stop_check(workspace)
    ):
        writer.write(fingers.take(tally.drop_judged(table)))
        workspace.progress(tally.seen, total, f"{writer.documents:,} of {tally.seen:,} documents pass")
    writer.close()
    return fingers


def judge_group(
    group: RowGroup,
    corpus: Artifact,
    normalisation: Normalisation | dict[str, Normalisation],
    chosen: dict[str, list[Filter[Any]]],
    dedup: DedupConfig,
) -> Iterator[pa.Table]:
    """What a worker does with a row group: normalise, judge by the source's filters, and hash what passes.

    Yields (id, source, text, reason, detail, digest, bands), a row for each document.
    """
    import numpy as np
    import pyarrow as pa

    from cluster.data.filters.dedup import MinHash, digest
    from cluster.data.filters.normalise import normalise

    documents = read_group(corpus.path(verify=False), group)
    texts: list[str] = documents.column("text").to_pylist()
    sources = documents.column("source").to_pylist()
    reasons: list[str | None] = [None] * len(texts)
    details = [""] * len(texts)
    for source in dict.fromkeys(sources):
        rows = [i for i, s in enumerate(sources) if s == source]
        kind = by_source(normalisation, source, "text")
        normal = [normalise(texts[i], kind) for i in rows]
        verdicts = judge(normal, by_source(chosen, source, []))
        for row, (text, reason, detail) in zip(rows, verdicts, strict=True):
            blank = reason is None and not text.strip()  # of control characters, say, nothing is left
            texts[row], reasons[row], details[row] = text, "empty" if blank else reason, detail
    passing = [text for text, reason in zip(texts, reasons, strict=True) if reason is None]
    bands = np.zeros((len(texts), dedup.bands if dedup.near else 0), np.uint64)
    if dedup.near and passing:
        minhash = MinHash(dedup.bands, dedup.rows, dedup.ngram)
        kept = np.array([reason is None for reason in reasons])
        bands[kept] = minhash.band_keys(minhash.signatures(passing))
    hashes = [digest(t) if r is None else bytes(16) for t, r in zip(texts, reasons, strict=True)]
    yield pa.table(
        {
            "id": documents.column("id"),
            "source": documents.column("source"),
            # a removed document's text is of no further use
            "text": pa.array([t if r is None else "" for t, r in zip(texts, reasons, strict=True)], pa.large_string()),
            "reason": pa.array(reasons, pa.string()),
            "detail": pa.array(details, pa.string()),
            "digest": pa.array(hashes, pa.binary(16)),
            "bands": pa.array([row.tobytes() for row in bands], pa.binary()),
        }
    )


class _Fingers:
    """Ids, hashes and band keys of the documents that passed the rules: 130 bytes and an id for each."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._digests: list[bytes] = []
        self._bands: list[bytes] = []

    def take(self, table: pa.Table) -> pa.Table:
        self.ids += table.column("id").to_pylist()
        self._digests.append(b"".join(table.column("digest").to_pylist()))
        self._bands.append(b"".join(table.column("bands").to_pylist()))
        return table

    def duplicates(self, config: DedupConfig) -> tuple[np.ndarray, np.ndarray]:
        """For each document the index of the one that stays, and whether it is an exact copy."""
        import numpy as np

        from cluster.data.filters.dedup import find_duplicates

        count = len(self.ids)
        digests = np.frombuffer(b"".join(self._digests), np.uint64).reshape(count, 2)
        bands = np.frombuffer(b"".join(self._bands), np.uint64)
        keys = bands.reshape(count, config.bands) if config.near else None
        if not config.exact:
            digests = np.stack([np.arange(count, dtype=np.uint64)] * 2, axis=1)
        return find_duplicates(self.ids, digests, keys)


class _Tally:
    """What was removed, why, and what stayed, by source."""

    def __init__(self, sources: list[str]):
        self.seen = 0
        self.removed: dict[str, list[str]] = {"id": [], "source": [], "reason": [], "detail": []}
        self.kept: dict[str, list[int]] = {source: [0, 0] for source in sources}  # documents, bytes

    def _remove(self, table: pa.Table, reasons: list[str], details: list[str]) -> None:
        self.removed["id"] += table.column("id").to_pylist()
        self.removed["source"] += table.column("source").to_pylist()
        self.removed["reason"] += reasons
        self.removed["detail"] += details

    def drop_judged(self, table: pa.Table) -> pa.Table:
        self.seen += table.num_rows
        bad = table.filter([reason is not None for reason in table.column("reason").to_pylist()])
        self._remove(bad, bad.column("reason").to_pylist(), bad.column("detail").to_pylist())
        return table.filter([reason is None for reason in table.column("reason").to_pylist()])

    def drop_copies(
        self, table: pa.Table, part: slice, stays: np.ndarray, exact: np.ndarray, ids: list[str]
    ) -> pa.Table:
        own = [bool(stay == place) for place, stay in enumerate(stays, part.start)]
        copies = table.filter([not one for one in own])
        places = [i for i, one in enumerate(own) if not one]
        reasons = [COPIES[0] if exact[i] else COPIES[1] for i in places]
        self._remove(copies, reasons, [ids[int(stays[i])] for i in places])
        kept = table.filter(own)
        for source, text in zip(kept.column("source").to_pylist(), kept.column("text").to_pylist(), strict=True):
            count = self.kept.setdefault(source, [0, 0])
            count[0] += 1
            count[1] += len(text.encode())
        return kept

    def check(self) -> None:
        """Raises UserError, with what became of them, if nothing is left of all sources or of one."""
        emptied = [source for source, (documents, _) in self.kept.items() if not documents]
        if not emptied:
            return
        first = emptied[0]
        rows = [
            (why, name, detail)
            for name, source, why, detail in zip(*self.removed.values(), strict=True)
            if source == first or len(emptied) == len(self.kept)
        ]
        counts = Counter(why for why, _, _ in rows).most_common(5)
        reasons = ", ".join(f"{n:,} {why}" for why, n in counts) or "none came in"
        if len(emptied) == len(self.kept):
            raise UserError(
                f"The filter removed every document ({reasons}): choose other [filter] rules for these sources, "
                'or loosen [filter.thresholds]. For source code, rules = { NAME = ["code"] }.'
            )
        if counts and counts[0][0] in COPIES:
            copy = next(f"{name} is a copy of {detail}" for why, name, detail in rows if why == counts[0][0])
            advice = f"{copy}. Leave the source out, or give it texts of its own"
        else:
            advice = f'choose other [filter] rules for it, rules = {{ {first} = [...], "*" = [...] }}, or leave it out'
        raise UserError(f"The filter removed every document of the source {first!r} ({reasons}): {advice}.")

    def write(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: pa.array(values, pa.string()) for name, values in self.removed.items()}
        pq.write_table(pa.table(columns).sort_by("id"), path, compression="zstd")

    def summary(self, workspace: Workspace, writer: ShardWriter) -> FilterSummary:
        removed = Counter(self.removed["reason"])
        by = Counter(zip(self.removed["source"], self.removed["reason"], strict=True))
        sources = {
            source: {
                "documents": documents,
                "bytes": size,
                "removed": {why: n for (name, why), n in sorted(by.items()) if name == source},
            }
            for source, (documents, size) in self.kept.items()
        }
        events = workspace.events
        events.table("removed", ["source", "reason", "documents"], [[s, r, n] for (s, r), n in sorted(by.items())])
        counts = {"documents": writer.documents, "bytes": writer.bytes, "removed": removed.total()}
        events.metrics(0, {f"filter/{name}": float(value) for name, value in counts.items()})
        return FilterSummary(
            documents=writer.documents,
            bytes=writer.bytes,
            shards=writer.shards,
            sources=sources,
            removed=dict(sorted(removed.items())),
        )


def gist(config: FilterConfig) -> str:
    chosen = config.rules.values() if isinstance(config.rules, Mapping) else [config.rules]
    return ", ".join(sorted({name for names in chosen for name in names}))


STAGE = Stage("filter", "documents", 2, FilterConfig, run, FilterSummary, gist=gist)
