"""DoLa (Chuang et al. 2023, arXiv 2309.03883): contrastive decoding whose amateur is an earlier layer of the model.

    layer j's output ─▶ last norm ─▶ head = q_j         q_N: the model's own
    M = the candidate j whose q_j is farthest from q_N (Jensen-Shannon), chosen anew at each token of each row
    score(x) = log q_N(x) - log q_M(x) among the plausible tokens, as in contrastive.py

A layer's output is normalised as the last one's is before the head reads it, which heads of pre-norm models need.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model import mup
from model.decoder import Decoder
from model.errors import UserError
from model.generate.contrastive import Contrasting, contrast
from model.generate.method import Tools, only_causal
from model.generate.option import option
from model.segments import Segments
from model.state import State


@dataclass(frozen=True)
class DoLa(Contrasting):
    layers: Literal["lower", "upper"] = option("lower", "The half of the layers whose outputs are candidates.")
    layer: int = option(0, "The only candidate, counted from 1; 0: all of that half.", ge=0)
    alpha: float = option(0.1, "The share of the highest probability from which a token is plausible.", gt=0, le=1)

    def contrasted(self, model: Decoder, tools: Tools) -> "EarlyExits":
        only_causal(model, "dola")
        last = model.config.n_layers - 1  # the last layer's output is the model's own
        if not 1 <= max(self.layer, 1) <= last:
            raise UserError(
                f"dola: layer = {self.layer}, but the model has {last + 1} layers, and {last} before its last"
            )
        half = (last + 1) // 2
        lower, upper = range(1, max(half, 1) + 1), range(min(half + 1, last), last + 1)
        return EarlyExits(
            model, [self.layer] if self.layer else [*(lower if self.layers == "lower" else upper)], self.alpha
        )


class EarlyExits(nn.Module):
    """A decoder whose hidden states (B, T, (1 + J) * D) hold those of J earlier layers too."""

    def __init__(self, model: Decoder, layers: list[int], alpha: float) -> None:
        super().__init__()
        self.model, self.layers, self.alpha = model, layers, alpha
        self.config, self.embedding, self.new_state = model.config, model.embedding, model.new_state

    def forward(
        self, tokens_BT: Tensor, *, segments: Segments | None = None, state: State | None = None
    ) -> tuple[Tensor, State | None]:
        outputs: list[Tensor] = []

        def keep(_block: nn.Module, _given: Any, output: Tensor) -> None:
            outputs.append(self.model.norm(output) * mup.output_scale(self.config))

        hooks = [self.model.blocks[layer - 1].register_forward_hook(keep) for layer in self.layers]
        try:
            hidden, state = self.model(tokens_BT, segments=segments, state=state)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat((hidden, *outputs), -1), state

    def logits(self, hidden: Tensor) -> Tensor:
        own, *early = (self.model.logits(part) for part in hidden.split(self.config.d_model, -1))
        early_JBV = torch.stack(early)
        farthest = divergence(own, early_JBV).argmax(0)
        amateur = early_JBV.gather(0, farthest[None, ..., None].expand(1, *own.shape)).squeeze(0)
        return contrast(own, amateur, self.alpha)


def divergence(one_logits: Tensor, other_logits: Tensor) -> Tensor:
    """Jensen-Shannon, in nats, of the two distributions over the last dimension."""
    one, other = one_logits.log_softmax(-1), other_logits.log_softmax(-1)
    middle = torch.logaddexp(one, other) - torch.tensor(2.0).log()
    return (one.exp() * (one - middle) + other.exp() * (other - middle)).sum(-1) / 2
