"""An objective: repeat a token."""

from typing import Any

from model.objectives.next_token import NextToken


class Repeat(NextToken):
    def batch(self, rows: Any, samples_B: Any) -> Any:
        assert ((rows.targets_BT == rows.tokens_BT) | (rows.targets_BT < 0)).all(), "targets are 0 ahead"
        return rows
