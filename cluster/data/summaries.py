"""What the data stages say of their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.quantities import count, numbers, size, total
from cluster.report import Block, Table, Text
from cluster.stage import Summary

if TYPE_CHECKING:
    from cluster.store.artifact import Artifact


NAMED = 3  # reasons that the words have, the most frequent ones


@dataclass(frozen=True)
class DocumentsSummary(Summary):
    """Documents that came through a stage, and those that did not, by reason and by source."""

    documents: int = 0
    bytes: int = 0
    shards: int = 0
    sources: Mapping[str, Any] = field(default_factory=dict)

    def lost(self) -> tuple[str, Mapping[str, int]]:
        """(what became of the others, how many by reason)."""
        raise NotImplementedError

    def words(self) -> str:
        what, reasons = self.lost()
        words = f"{count(self.documents)} documents, {size(self.bytes)}"
        if not reasons:
            return words
        most = sorted(reasons.items(), key=lambda item: -item[1])
        named = ", ".join(f"{reason} {count(n)}" for reason, n in most[:NAMED]) + (", …" if len(most) > NAMED else "")
        return f"{words}, {count(total(reasons))} {what} ({named})"

    def report(self, artifact: Artifact) -> Sequence[Block]:
        what, reasons = self.lost()
        blocks: list[Block] = [Text(self.words())]
        by_source = {name: numbers(values) for name, values in sorted(self.sources.items())}
        if by_source:
            columns = list(dict.fromkeys(c for values in by_source.values() for c in values))
            rows = [[name, *(f"{values.get(c, 0):,.0f}" for c in columns)] for name, values in by_source.items()]
            blocks.append(Table("By source", ["source", *columns], rows))
        if not reasons:
            return [*blocks, Text(f"Nothing was {what}.")]
        rows = [[reason, f"{n:,.0f}"] for reason, n in sorted(reasons.items(), key=lambda item: -item[1])]
        return [*blocks, Table(f"{what.capitalize()}, by reason", ["reason", "documents"], rows)]


@dataclass(frozen=True)
class CorpusSummary(DocumentsSummary):
    """What else became of the sources.

    Attributes:
        passed_over: the files and folders that were not read, by reason, as source/name.
        unnamed: how many documents of a source lack its id_field, and are called by their places.
    """

    quarantined: Mapping[str, int] = field(default_factory=dict)
    passed_over: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unnamed: Mapping[str, int] = field(default_factory=dict)

    def lost(self) -> tuple[str, Mapping[str, int]]:
        return "quarantined", self.quarantined

    def words(self) -> str:
        said = [
            super().words(),
            *(f"{count(n)} of {source} without its id_field" for source, n in self.unnamed.items()),
        ]
        if not self.passed_over:
            return ", ".join(said)
        named = "; ".join(
            f"{reason} {count(len(names))}: {names[0]}" + (", …" if len(names) > 1 else "")
            for reason, names in self.passed_over.items()
        )
        return ", ".join([*said, f"{count(sum(map(len, self.passed_over.values())))} passed over ({named})"])

    def report(self, artifact: Artifact) -> Sequence[Block]:
        rows = [[reason, str(len(names)), ", ".join(names[:20])] for reason, names in self.passed_over.items()]
        table = [Table("Passed over, by reason", ["reason", "files and folders", "such as"], rows)] if rows else []
        return [*super().report(artifact), *table]


@dataclass(frozen=True)
class FilterSummary(DocumentsSummary):
    removed: Mapping[str, int] = field(default_factory=dict)

    def lost(self) -> tuple[str, Mapping[str, int]]:
        return "removed", self.removed


@dataclass(frozen=True)
class TokenizerSummary(Summary):
    """`sample` and `bytes_per_token` are by source; the former in bytes."""

    vocab_size: int = 0
    algorithm: str = ""
    sample_bytes: int = 0
    sample: Mapping[str, int] = field(default_factory=dict)
    bytes_per_token: Mapping[str, float] = field(default_factory=dict)

    def words(self) -> str:
        words = [f"{count(self.vocab_size)} pieces"]
        if self.bytes_per_token:
            words.append("bytes per token: " + ", ".join(f"{k} {v:.2f}" for k, v in self.bytes_per_token.items()))
        return ", ".join(words)


@dataclass(frozen=True)
class TokensSummary(Summary):
    """Training documents, their tokens and their bytes, the held-out ones, and both by source."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    validation_documents: int = 0
    validation_tokens: int = 0
    validation_bytes: int = 0
    sources: Mapping[str, Any] = field(default_factory=dict)
    cut: Sequence[str] = ()  # the sources whose only text was cut: its end is held out

    def words(self) -> str:
        words = [f"{count(self.tokens)} tokens"]
        if self.cut:
            words.append(f"of the only text of {', '.join(self.cut)} the end is held out")
        if bare := [s for s, parts in sorted(self.sources.items()) if not parts["validation"]["documents"]]:
            words.append(f"nothing is held out of {', '.join(bare)}")
        return "; ".join(words)
