"""Best of n: several answers are drawn, and the one that the model finds likeliest per token is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from model.decoder import Decoder
from model.generate.decoding import Decoding
from model.generate.engine import Completion
from model.generate.method import Method, Prompts, Tools, several
from model.generate.option import option


@dataclass(frozen=True)
class BestOf(Method):
    draws: ClassVar[bool] = True
    n: int = option(4, "Answers that are drawn.", ge=1)

    def generate(
        self, model: Decoder, prompts: Prompts, decoding: Decoding, seeds: Sequence[int], tools: Tools
    ) -> list[Completion]:
        """The best of each prompt's answers; the others are in its `others`."""
        found = several(model, prompts, decoding, seeds, range(self.n), self.n, tools)
        return [ranked(answers, [answer.mean_logprob for answer in answers]) for answers in found]


def ranked(completions: Sequence[Completion], scores: Sequence[Any]) -> Completion:
    """The completion with the highest score, the first of equal ones, with the others in their order behind it."""
    order = sorted(range(len(completions)), key=scores.__getitem__, reverse=True)
    best, *others = (completions[i] for i in order)
    best.others = others
    return best
