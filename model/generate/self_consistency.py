"""Self-consistency (Wang et al. 2022, arXiv 2203.11171): n chains of thought, and the answer that most of them reach.

    prompt ─▶ chain 1 … chain n, drawn ─▶ the answer of each that ended ─▶ a vote ─▶ a chain that has the winning answer

Chains are drawn some at a time. A prompt whose vote those that are left can't change draws no more, so that the answer
is the one that all n would have given.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from model.decoder import Decoder
from model.errors import UserError
from model.generate.best_of import ranked
from model.generate.decoding import Decoding
from model.generate.engine import Completion
from model.generate.method import Method, Prompts, Tools, several
from model.generate.option import option

Weight = Literal["count", "likelihood", "score"]
What = Literal["task", "number", "stated", "text"]


@dataclass(frozen=True)
class SelfConsistency(Method):
    """The weights of Wang et al., table 1: each chain the same, or its probability per token; or a score of yours."""

    draws: ClassVar[bool] = True
    n: int = option(16, "Chains of thought.", ge=1)
    weight: Weight = option("count", "What a chain's vote weighs.")  # noqa: RUF009 (it is a field)
    answer: What = option("task", "What of a chain is its answer; task: as its verifier reads it.")  # noqa: RUF009
    at_once: int = option(4, "Chains that are drawn before it is looked whether the vote is decided.", ge=1)

    def generate(
        self, model: Decoder, prompts: Prompts, decoding: Decoding, seeds: Sequence[int], tools: Tools
    ) -> list[Completion]:
        """Of each prompt the likeliest chain with the winning answer; the other chains are in its `others`.

        A chain that was cut off by its length has no vote. Where none has, the likeliest chain is given.
        """
        votes = [Vote() for _ in prompts]
        for start in range(0, self.n, self.at_once):
            end = min(start + self.at_once, self.n)
            open_ = [i for i, vote in enumerate(votes) if not vote.decided(self.n - start)]
            if not open_:
                break
            chosen = [prompts[i] for i in open_], decoding, [seeds[i] for i in open_]
            for i, chains in zip(open_, several(model, *chosen, range(start, end), self.n, tools), strict=True):
                for chain in chains:
                    answer = tools.answer(i, chain, self.answer) if chain.finish == "stop" else None
                    votes[i].add(chain, answer, self._weight(i, chain, tools))
        return [vote.won() for vote in votes]

    def _weight(self, row: int, chain: Completion, tools: Tools) -> float:
        if self.weight == "count":
            return 1.0
        if self.weight == "likelihood":
            return math.exp(chain.mean_logprob)
        if tools.score is None:
            raise UserError("self_consistency: weight = 'score' needs a scoring function, and none was given")
        score = tools.score(row, chain)
        if not 0 <= score <= 1:
            raise ValueError(f"a chain's score must be in [0, 1], not {score}: the vote ends early by that bound")
        return score


@dataclass
class Vote:
    """One prompt's chains so far. A chain weighs 1 at most."""

    chains: list[Completion] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, chain: Completion, answer: str | None, weight: float) -> None:
        self.chains.append(chain)
        self.answers.append(answer)
        if answer is not None:
            self.weights[answer] += weight

    def decided(self, left: int) -> bool:
        """Whether no votes of the `left` chains to come can give another answer as much as the first has."""
        first, second, *_ = [*sorted(self.weights.values(), reverse=True), 0.0, 0.0]
        return first > second + left

    def won(self) -> Completion:
        """Of equal answers the one that was there first wins."""
        winner = max(self.weights, key=self.weights.__getitem__) if self.weights else None
        voted = [answer == winner for answer in self.answers]
        return ranked(self.chains, [(own, chain.mean_logprob) for own, chain in zip(voted, self.chains, strict=True)])
