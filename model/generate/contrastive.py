"""Contrastive decoding (Li et al. 2022, arXiv 2210.15097): what an expert finds likelier than an amateur does.

    score(x) = log p_expert(x) - log p_amateur(x)     where p_expert(x) >= alpha * max p_expert, the plausible tokens
             = -inf                                    elsewhere

Both models read the same tokens side by side, as one model whose hidden states and whose state are both's: so it is
decoded as any other. Its distribution is the softmax of the scores: greedy (temperature 0) is the paper's choice with
one beam, and log-probabilities are those of that distribution.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from model.decoder import Decoder
from model.errors import UserError
from model.generate.decoding import Decoding
from model.generate.engine import Completion, Token
from model.generate.method import Method, Plain, Prompts, Tools, of_one_tokenizer
from model.generate.option import option
from model.segments import Segments
from model.state import State


class Contrasting(Method):
    """Plain decoding of another model, made of the one that is given."""

    def contrasted(self, model: Decoder, tools: Tools) -> Any:
        raise NotImplementedError

    def generate(
        self, model: Decoder, prompts: Prompts, decoding: Decoding, seeds: Sequence[int], tools: Tools
    ) -> list[Completion]:
        return Plain().generate(self.contrasted(model, tools), prompts, decoding, seeds, tools)

    def stream(self, model: Decoder, prompt: Sequence[int], decoding: Decoding, tools: Tools) -> Iterator[Token]:
        return Plain().stream(self.contrasted(model, tools), prompt, decoding, tools)


@dataclass(frozen=True)
class Contrastive(Contrasting):
    amateur: str = option("", "A smaller or less trained model with the same tokenizer: its name, or its folder.")
    alpha: float = option(
        0.1, "The share of the expert's highest probability from which a token is plausible.", gt=0, le=1
    )
    amateur_temperature: float = option(1.0, "Of the amateur; the paper's is 0.5 for the smallest, else 1.", gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.amateur:
            raise UserError("amateur = '' must be another model with the same tokenizer: contrastive:amateur=MODEL")

    @property
    def others(self) -> tuple[str, ...]:
        return (self.amateur,)

    def contrasted(self, model: Decoder, tools: Tools) -> "Pair":
        amateur = of_one_tokenizer(model, tools, "contrastive", "amateur", self.amateur)
        return Pair(model, amateur, self._score)

    def _score(self, expert_logits: Tensor, amateur_logits: Tensor) -> Tensor:
        return contrast(expert_logits, amateur_logits / self.amateur_temperature, self.alpha)


def contrast(expert_logits: Tensor, amateur_logits: Tensor, alpha: float) -> Tensor:
    """The scores above, of logits (…, V)."""
    expert, amateur = expert_logits.log_softmax(-1), amateur_logits.log_softmax(-1)
    plausible = expert.exp() >= alpha * expert.exp().amax(-1, keepdim=True)
    return (expert - amateur).masked_fill(~plausible, float("-inf"))


class Pair(nn.Module):
    """Two decoders side by side, as one: hidden (B, T, D + D'), a state of both's layers, logits by `score`."""

    def __init__(self, expert: Decoder, amateur: Decoder, score: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.expert, self.amateur, self.score = expert, amateur, score
        self.config = replace(expert.config, max_seq_len=min(expert.config.max_seq_len, amateur.config.max_seq_len))
        self.embedding = expert.embedding  # whose device it is asked for

    def forward(
        self, tokens_BT: Tensor, *, segments: Segments | None = None, state: State | None = None
    ) -> tuple[Tensor, State | None]:
        own, others = None, None
        if state is not None:
            split = len(self.expert.blocks)
            own, others = replace(state, layers=state.layers[:split]), replace(state, layers=state.layers[split:])
        hidden, after = self.expert(tokens_BT, segments=segments, state=own)
        beside, _ = self.amateur(tokens_BT, segments=segments, state=others)
        if after is not None and state is not None:
            after = replace(after, layers=state.layers)  # both's, updated in place
        return torch.cat((hidden, beside.to(hidden.dtype)), -1), after

    def logits(self, hidden: Tensor) -> Tensor:
        own, beside = hidden.split((self.expert.config.d_model, self.amateur.config.d_model), -1)
        return self.score(self.expert.logits(own), self.amateur.logits(beside))

    def new_state(self, *sizes: Any, **options: Any) -> State:
        own, others = (model.new_state(*sizes, **options) for model in (self.expert, self.amateur))
        return replace(own, layers=[*own.layers, *others.layers])
