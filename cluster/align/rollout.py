"""Rollouts: the policy answers its prompts, a verifier rewards the answers, and the answers become a batch.

    prompts of this step ─▶ group_size samples each at temperature 1, nothing truncated ─▶ verify ─▶ advantage

Sampling is from exactly the policy's own distribution, so that the importance ratio has no bias; an answer that was cut
off by max_new_tokens has no reward, since it never ended.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cluster.align.config import RlhfConfig
from cluster.data.examples.examples import prompt_ids
from cluster.data.examples.lengths import task_fits
from cluster.data.order import Permutation, rank_slice
from cluster.errors import UserError
from cluster.train.worker import Worker
from cluster.verify.verifiers import verify
from model.decoder import Decoder
from model.generate.decoding import Decoding
from model.generate.engine import Completion, generate
from model.objectives.logprobs import sequence_logprobs
from model.objectives.policy import PolicyBatch, group_advantages, policy

if TYPE_CHECKING:
    from cluster.data.tokenizer.tokenizer import Tokenizer

HELDOUT_SEED = 1 << 40  # far from the seeds of training samples


class Rollouts:
    """Batches and scores of policy optimisation on one rank. See model.trainer.train for how they are used."""

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
        self.config, self.model, self.reference = config, model, reference.requires_grad_(False)
        self.tokenizer, self.worker = tokenizer, worker
        fits = task_fits(tokenizer, model.config.max_seq_len)
        for task in (*train, *heldout):
            fits(task)
        self.train = [(task, prompt_ids(tokenizer, task)) for task in train]
        self.heldout = [(task, prompt_ids(tokenizer, task)) for task in heldout]
        self.prompts_per_step = config.train.batch_size // config.group_size
        if self.prompts_per_step < worker.world_size:
            raise UserError(
                f"[rlhf.train] batch_size = {config.train.batch_size} is {self.prompts_per_step} prompts of "
                f"{config.group_size} answers, fewer than the {worker.world_size} workers: raise it."
            )
        self.objective = partial(policy, config=config.policy)
        self._stats: dict[str, float] = {}

    def batch(self, step: int) -> PolicyBatch:
        """This rank's answers of a step, with their advantages."""
        self.reference.to(self.worker.device)
        size, group = self.prompts_per_step, self.config.group_size
        numbers = np.arange(step * size, (step + 1) * size)[rank_slice(size, self.worker.rank, self.worker.world_size)]
        chosen = []
        for epoch, place in zip(*np.divmod(numbers, len(self.train)), strict=True):
            order = Permutation(len(self.train), (self.config.seed, "rlhf", int(epoch)))
            chosen.append(self.train[int(order(place))])
        seeds = [int(n) * group + i for n in numbers for i in range(group)]
        items = [item for item in chosen for _ in range(group)]
        answers = self._answer([prompt for _, prompt in items], 1.0, [self.config.seed + s for s in seeds])
        rewards = torch.tensor(
            [self._reward(task, a) for (task, _), a in zip(items, answers, strict=True)], dtype=torch.float32
        )
        groups = rewards.view(-1, group)
        told_apart = (groups.max(1).values > groups.min(1).values).float()
        self._stats = self._mean(
            {
                "reward": rewards,
                "completion_tokens": torch.tensor([float(len(a.tokens)) for a in answers]),
                "groups_told_apart": told_apart,
            }
        )
        advantage = group_advantages(rewards, group, self.config.policy.advantage)
        # DAPO leaves out the groups in which every answer is as good: they carry no gradient, only a KL.
        weight = told_apart.repeat_interleave(group) if self.config.method == "dapo" else torch.ones(len(items))
        return self._pack([prompt for _, prompt in items], answers, advantage, weight)

    def log(self, step: int) -> dict[str, float]:
        """The last rollout's figures, over all ranks."""
        return self._stats

    def score(self) -> dict[str, float]:
        """The held-out prompts' mean reward, greedy and sampled, over all ranks."""
        part = self.heldout[rank_slice(len(self.heldout), self.worker.rank, self.worker.world_size)]
        begin = rank_slice(len(self.heldout), self.worker.rank, self.worker.world_size).start
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
        old = torch.zeros(tokens.shape)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            end = len(prompt) + len(answer.tokens)
            tokens[row, :end] = torch.tensor(prompt + answer.tokens)
            mask[row, len(prompt) : end] = True
            old[row, len(prompt) : end] = torch.tensor(answer.logprobs)
        reference = torch.zeros(tokens.shape)
        if self.config.kl_coef:
            device = self.worker.device
            with torch.no_grad():
                parts = zip(tokens.to(device).split(64), mask.to(device).split(64), strict=True)
                reference = torch.cat([sequence_logprobs(self.reference, t, m).cpu() for t, m in parts])
        return PolicyBatch(tokens, mask, old, reference, advantage, weight)

    def _mean(self, values: dict[str, Any]) -> dict[str, float]:
        return self.worker.mean({name: (float(v.sum()), v.numel()) for name, v in values.items()})
