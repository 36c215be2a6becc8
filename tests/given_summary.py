"""A summary that says what a test gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.stage import Summary


@dataclass(frozen=True)
class Given(Summary):
    content: dict[str, Any] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        return self.content

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Given:
        return cls(dict(values))
