"""Learning from pairs: a chosen and a rejected completion of one prompt.

h = beta * [(log pi - log ref)(chosen) - (log pi - log ref)(rejected)],  log p summed over the completion
DPO     -log sigmoid(h)                                Rafailov et al. 2023, arXiv 2305.18290
cDPO    (1 - eps) L(h) + eps L(-h)                     Mitchell 2023; `label_smoothing` = eps
IPO     (delta - 1 / (2 tau))^2, delta of per-token means, tau = beta      Azar et al. 2023, arXiv 2310.12036
SimPO   -log sigmoid(beta * (mean chosen - mean rejected) - gamma)         Meng et al. 2024, arXiv 2405.14734
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.decoder import Decoder
from model.errors import UserError
from model.objectives.logprobs import sequence_logprobs


@dataclass(frozen=True)
class PreferenceConfig:
    loss: Literal["dpo", "ipo", "simpo"] = "dpo"
    beta: float = 0.1  # IPO's tau; SimPO's paper: 2.5
    gamma: float = 1.375  # SimPO's target margin; its paper: gamma / beta = 0.55
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.beta <= 0 or not 0 <= self.label_smoothing < 0.5:
            raise UserError("beta must be above 0, and label_smoothing at least 0 and below 0.5")


class PreferenceBatch(NamedTuple):
    """P pairs of completions of one prompt each, right-padded.

    Masks mark each completion's tokens, a pair that has none is left out; reference_P2 has the reference's (chosen,
    rejected) sums of log-probabilities.
    """

    chosen_PT: Tensor
    chosen_mask_PT: Tensor
    rejected_PT: Tensor
    rejected_mask_PT: Tensor
    reference_P2: Tensor


def preference_loss(
    chosen_P: Tensor,
    rejected_P: Tensor,
    reference_P2: Tensor,
    lengths_P2: Tensor,
    config: PreferenceConfig,
) -> tuple[Tensor, Tensor]:
    """(per-pair losses, per-pair margins h) from sums of log-probabilities and numbers of tokens."""
    lengths = lengths_P2.to(chosen_P.dtype).clamp(min=1)
    if config.loss == "simpo":
        margin = config.beta * (chosen_P / lengths[:, 0] - rejected_P / lengths[:, 1])
        return -F.logsigmoid(margin - config.gamma), margin
    chosen, rejected = chosen_P - reference_P2[:, 0], rejected_P - reference_P2[:, 1]
    if config.loss == "ipo":
        delta = chosen / lengths[:, 0] - rejected / lengths[:, 1]
        return (delta - 1 / (2 * config.beta)).square(), delta
    h = config.beta * (chosen - rejected)
    eps = config.label_smoothing
    return -(1 - eps) * F.logsigmoid(h) - eps * F.logsigmoid(-h), h


def pair_logprobs(model: Decoder, batch: PreferenceBatch) -> Tensor:
    """(P, 2): sums of log-probabilities of the chosen and the rejected completions, in one forward pass."""
    tokens = torch.cat((batch.chosen_PT, batch.rejected_PT))
    mask = torch.cat((batch.chosen_mask_PT, batch.rejected_mask_PT))
    return sequence_logprobs(model, tokens, mask).sum(1).view(2, -1).T


def preference(
    model: Decoder, batch: PreferenceBatch, config: PreferenceConfig
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The objective for `trainer.train`: bind `config` with functools.partial."""
    sums_P2 = pair_logprobs(model, batch)
    lengths_P2 = torch.stack((batch.chosen_mask_PT.sum(1), batch.rejected_mask_PT.sum(1)), 1)
    losses, margins = preference_loss(sums_P2[:, 0], sums_P2[:, 1], batch.reference_P2, lengths_P2, config)
    kept = (lengths_P2 > 0).all(1)
    extras = {"accuracy": ((margins > 0) & kept).float().sum(), "margin": (margins.detach() * kept).sum()}
    return (losses * kept).sum(), kept.sum(), extras
