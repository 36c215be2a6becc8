"""Preference pairs as batches: DPO, IPO and SimPO on (conversation, chosen, rejected)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from cluster.align.check import rendered_pair
from cluster.align.config import RlhfConfig
from cluster.align.learner import Learner
from cluster.data.tokenizer.chat import Rendered
from cluster.errors import UserError
from cluster.train.worker import Worker
from model.decoder import Decoder
from model.objectives.preference import PreferenceBatch, pair_logprobs, preference
from model.trainer import as_trained

if TYPE_CHECKING:
    from cluster.data.tokenizer.tokenizer import Tokenizer


class Pair(NamedTuple):
    """A conversation with either answer; the masks are 1 on the answers."""

    chosen: Rendered
    rejected: Rendered

    @property
    def longest(self) -> int:
        return max(len(self.chosen.ids), len(self.rejected.ids))


class Pairs(Learner):
    """Batches and scores of preference optimisation on one rank.

    Attributes:
        too_long: how many pairs don't fit into a row, and are left out.
    """

    order = "preferences"

    def __init__(
        self,
        config: RlhfConfig,
        model: Decoder,
        reference: Decoder,
        tokenizer: Tokenizer,
        worker: Worker,
        train: list[dict],
        heldout: list[dict],
    ):
        super().__init__(config, model, reference, tokenizer, worker)
        longest = min(config.train.seq_len, model.config.max_seq_len)
        self.train = [p for p in (self._encode(item) for item in train) if p.longest <= longest]
        self.heldout = [p for p in (self._encode(item) for item in heldout) if p.longest <= longest]
        self.too_long = len(train) + len(heldout) - len(self.train) - len(self.heldout)
        if not self.train or not self.heldout:
            raise UserError(f"[rlhf] no preference pair fits into seq_len = {longest} tokens: raise train.seq_len.")
        self.objective = partial(preference, config=config.preference)

    def batch(self, step: int) -> PreferenceBatch:
        """This rank's pairs of a step, with the reference's log-probabilities."""
        return self._pack([pair for _, pair in self.of_step(step, self.config.train.batch_size, self.train)])

    def log(self, step: int) -> dict[str, float]:
        return {}

    def score(self) -> dict[str, float]:
        """How often the held-out chosen answer is the likelier one, per token, over all ranks."""
        part = self.heldout[self.part(len(self.heldout))]
        self.model.to(self.worker.device).eval()
        right = 0.0
        with torch.no_grad():
            for start in range(0, len(part), 32):
                batch = self._pack(part[start : start + 32])
                batch = PreferenceBatch(*(t.to(self.worker.device) for t in batch))
                lengths = torch.stack((batch.chosen_mask_PT.sum(1), batch.rejected_mask_PT.sum(1)), 1)
                means = pair_logprobs(self.model, batch) / lengths
                right += float((means[:, 0] > means[:, 1]).sum())
        return self.worker.mean({"heldout_reward": (right, len(part))})

    def _encode(self, item: dict) -> Pair:
        return Pair(*rendered_pair(self.tokenizer, item))

    def _pack(self, pairs: list[Pair]) -> PreferenceBatch:
        if not pairs:  # a rank without pairs takes part in the step with one that counts for nothing
            nothing = Rendered([self.tokenizer.pad_id] * 2, [0, 0])
            pairs = [Pair(nothing, nothing)]
        width = max(pair.longest for pair in pairs)
        parts: list[torch.Tensor] = []
        for side in ("chosen", "rejected"):
            tokens = torch.full((len(pairs), width), self.tokenizer.pad_id)
            mask = torch.zeros(tokens.shape, dtype=torch.bool)
            for row, pair in enumerate(pairs):
                ids, answer = getattr(pair, side)
                tokens[row, : len(ids)] = torch.tensor(ids)
                mask[row, : len(ids)] = torch.tensor(answer, dtype=torch.bool)
            parts += [tokens, mask]
        batch = PreferenceBatch(*parts, reference_P2=torch.zeros(len(pairs), 2))
        if self.config.method == "simpo":
            return batch  # has no reference
        self.reference.to(self.worker.device)
        sums = as_trained(partial(pair_logprobs, self.reference), batch, self.config.train, self.worker.device)
        return batch._replace(reference_P2=sums)
