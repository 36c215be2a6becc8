"""Which tasks or pairs an alignment trains on, and which it is scored on: no question is in both."""

from __future__ import annotations

from cluster.align.config import PREFERENCE, RlhfConfig
from cluster.data.examples import examples
from cluster.data.held_out import one_in, question
from cluster.errors import UserError


def split(config: RlhfConfig) -> tuple[list[dict], list[dict]]:
    """(items to train on, held-out items), no conversation in both. Raises UserError if either is empty."""
    read = examples.read_preferences if config.method in PREFERENCE else examples.read_tasks
    items = read(config.data)
    if config.heldout:
        heldout = read(config.heldout)
        kept = {question(item) for item in heldout}
        train = [item for item in items if question(item) not in kept]
    else:
        train = [item for item in items if not one_in_ten(item)]
        heldout = [item for item in items if one_in_ten(item)]
    if not train or not heldout:
        raise UserError(
            f"it has {len(train)} items to train on and {len(heldout)} held-out ones; it needs both: add data, "
            "or name other heldout."
        )
    return train, heldout[: config.heldout_items]


def one_in_ten(item: dict) -> bool:
    return one_in(10, question(item), "heldout")
