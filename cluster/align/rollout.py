"""Rollouts: the policy answers its prompts, a verifier rewards the answers, and the answers become a batch.

    prompts of this step ─▶ group_size samples each at temperature 1, nothing truncated ─▶ verify ─▶ advantage

Sampling is from the policy's whole distribution, so that the importance ratio has no bias; an answer that was cut off
by max_new_tokens has no reward, since it never ended. The old and the reference's log-probabilities are computed as the
loss will compute the policy's (dtype, rows at once): before the update the ratio is 1, and at the first step the KL 0.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from cluster.align.config import RlhfConfig
from cluster.align.learner import Learner
from cluster.data.examples.examples import prompt_ids
from cluster.data.examples.lengths import task_fits
from cluster.train.worker import Worker
from cluster.verify.verifiers import verify
from model.decoder import Decoder
from model.generate.decoding import Decoding
from model.generate.engine import Completion, generate
from model.objectives.logprobs import sequence_logprobs
from model.objectives.policy import PolicyBatch, group_advantages, policy
from model.trainer import as_trained

if TYPE_CHECKING:
    from cluster.data.tokenizer.tokenizer import Tokenizer

HELDOUT_SEED = 1 << 40  # far from the seeds of training samples


class Rollouts(Learner):
    """Batches and scores of policy optimisation on one rank."""

    order = "rlhf"

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
        fits = task_fits(tokenizer, model.config.max_seq_len)
        for task in (*train, *heldout):
            fits(task)
        self.train = [(task, prompt_ids(tokenizer, task)) for task in train]
        self.heldout = [(task, prompt_ids(tokenizer, task)) for task in heldout]
        self.prompts_per_step = config.train.batch_size // config.group_size
        self.objective = partial(policy, config=config.policy)
        self._stats: dict[str, float] = {}

    def batch(self, step: int) -> PolicyBatch:
        """This rank's answers of a step, with their advantages."""
        self.reference.to(self.worker.device)
        group = self.config.group_size
        chosen = list(self.of_step(step, self.prompts_per_step, self.train))
        seeds = [number * group + i for number, _ in chosen for i in range(group)]
        items = [item for _, item in chosen for _ in range(group)]
        answers = self._answer([prompt for _, prompt in items], 1.0, [self.config.seed + s for s in seeds])
        rewards = torch.tensor(
            [self._reward(task, a) for (task, _), a in zip(items, answers, strict=True)], dtype=torch.float32
        )
        groups = rewards.view(len(chosen), group)
        told_apart = (groups.max(1).values > groups.min(1).values).float()
        self._stats = self._mean(
            {
                "reward": rewards,
                "completion_tokens": torch.tensor([float(len(a.tokens)) for a in answers]),
                "groups_told_apart": told_apart,
            }
        )
        if not items:
            return self._no_rows()
        advantage = group_advantages(rewards, group, self.config.policy.advantage)
        # DAPO leaves out the groups in which every answer is as good: they carry no gradient, only a KL.
        weight = told_apart.repeat_interleave(group) if self.config.method == "dapo" else torch.ones(len(items))
        return self._pack([prompt for _, prompt in items], answers, advantage, weight)

    def log(self, step: int) -> dict[str, float]:
        """The last rollout's figures, over all ranks."""
        return self._stats

    def score(self) -> dict[str, float]:
        """The held-out prompts' mean reward, greedy and sampled, over all ranks."""
        mine = self.part(len(self.heldout))
        part, begin = self.heldout[mine], mine.start
        device = self.worker.device
        self.model.to(device).eval()
        prompts = [prompt for _, prompt in part]
        greedy = self._answer(prompts, 0.0, [0] * len(part))
        repeats = 4
        items = [item for item in part for _ in range(repeats)]
        seeds = [HELDOUT_SEED + begin * repeats + i for i in range(len(items))]
        sampled = self._answer([prompt for _, prompt in items], 1.0, seeds)
        return self._mean(
            {
                "heldout_reward": torch.tensor([self._reward(t, a) for (t, _), a in zip(items, sampled, strict=True)]),
                "heldout_greedy": torch.tensor([self._reward(t, a) for (t, _), a in zip(part, greedy, strict=True)]),
                "heldout_tokens": torch.tensor([float(len(a.tokens)) for a in sampled]),
            }
        )

    def _answer(self, prompts: list[list[int]], temperature: float, seeds: list[int]) -> list[Completion]:
        stops = (self.tokenizer.end_id,)
        decoding = Decoding(max_new_tokens=self.config.max_new_tokens, temperature=temperature, stops=stops)
        return generate(self.model, prompts, decoding, seeds, batch_size=256)

    def _reward(self, task: dict, answer: Completion) -> float:
        if answer.finish != "stop":
            return 0.0
        return verify(task, self.tokenizer.decode(answer.tokens[:-1]))

    def _pack(
        self, prompts: list[list[int]], answers: list[Completion], advantage: torch.Tensor, weight: torch.Tensor
    ) -> PolicyBatch:
        width = max(len(p) + len(a.tokens) for p, a in zip(prompts, answers, strict=True))
        tokens = torch.full((len(prompts), width), self.tokenizer.pad_id)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            end = len(prompt) + len(answer.tokens)
            tokens[row, :end] = torch.tensor(prompt + answer.tokens)
            mask[row, len(prompt) : end] = True
        nothing = torch.zeros(tokens.shape)
        batch = PolicyBatch(tokens, mask, nothing, nothing, advantage, weight)
        reference = self._logprobs(self.reference, batch) if self.config.kl_coef else nothing
        return batch._replace(old_BT=self._logprobs(self.model, batch), reference_BT=reference)

    def _logprobs(self, model: Decoder, batch: PolicyBatch) -> torch.Tensor:
        def of(rows: PolicyBatch) -> torch.Tensor:
            return sequence_logprobs(model, rows.tokens_BT, rows.mask_BT)

        return as_trained(of, batch, self.config.train, self.worker.device)

    def _no_rows(self) -> PolicyBatch:
        """What a rank without prompts takes part in a step with: a row that counts for nothing."""
        tokens, nothing = torch.full((1, 2), self.tokenizer.pad_id), torch.zeros(1, 2)
        return PolicyBatch(tokens, tokens != tokens, nothing, nothing, torch.zeros(1), torch.zeros(1))

    def _mean(self, values: dict[str, Any]) -> dict[str, float]:
        return self.worker.mean({name: (float(v.sum()), v.numel()) for name, v in values.items()})
