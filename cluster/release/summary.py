"""What a release says of its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.report import Block, Table, Text
from cluster.stage import Summary

if TYPE_CHECKING:
    from cluster.store.artifact import Artifact


@dataclass(frozen=True)
class ReleaseSummary(Summary):
    """The registered version, its aliases, and the gate's verdict: {"passed", "reason", "metrics": rows}."""

    name: str = ""
    version: int = 0
    aliases: Sequence[str] = ()
    uri: str = ""
    gate: Mapping[str, Any] = field(default_factory=dict)
    parameters: int = 0

    @property
    def verdict(self) -> str:
        return f"Gate {'passed' if self.gate.get('passed') else 'failed'}: {self.gate.get('reason', '')}"

    def words(self) -> str:
        return f"{self.name} version {self.version}"

    def report(self, artifact: Artifact) -> Sequence[Block]:
        aliases = ", ".join(f"@{a}" for a in self.aliases) or "none"
        rows = self.gate.get("metrics") or []
        columns = list(rows[0]) if rows else []
        table = [Table("Gate", columns, [[r.get(c, "") for c in columns] for r in rows])] if rows else []
        return [Text(f"{self.words()}. Aliases: {aliases}"), Text(self.verdict), *table]

    def closing(self) -> Sequence[str]:
        aliases = " ".join(f"@{a}" for a in self.aliases) or "no alias"
        return [f"Registered: {self.name} version {self.version} ({aliases})", self.verdict]
