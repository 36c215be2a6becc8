"""What policy and preference optimisation share on a rank: the models, and which items a step learns from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from cluster.align.config import RlhfConfig
from cluster.data.order import Permutation, rank_slice
from cluster.train.worker import Worker
from model.decoder import Decoder

if TYPE_CHECKING:
    from cluster.data.tokenizer.tokenizer import Tokenizer

Item = TypeVar("Item")


class Learner:
    """Batches and scores of an alignment on one rank. See model.trainer.train for how they are used.

    Args:
        model: what is trained, in place.
        reference: what it began as.
    """

    order: str  # the key of the order in which items are learned from

    def __init__(
        self, config: RlhfConfig, model: Decoder, reference: Decoder, tokenizer: Tokenizer, worker: Worker
    ) -> None:
        self.config, self.model, self.reference = config, model, reference.requires_grad_(False)
        self.tokenizer, self.worker = tokenizer, worker

    def of_step(self, step: int, size: int, items: Sequence[Item]) -> Iterable[tuple[int, Item]]:
        """(number in the run, item) of this rank's part of a step, which learns from `size` of them."""
        numbers = np.arange(step * size, (step + 1) * size)[self.part(size)]
        for number, epoch, place in zip(numbers, *np.divmod(numbers, len(items)), strict=True):
            order = Permutation(len(items), (self.config.seed, self.order, int(epoch)))
            yield int(number), items[int(order(place))]

    def part(self, count: int) -> slice:
        """Which of `count` this rank has."""
        return rank_slice(count, self.worker.rank, self.worker.world_size)
