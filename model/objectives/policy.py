"""Policy optimisation: advantages of a group of samples, the clipped surrogate, and the KL to a reference.

    PPO's clip      Schulman et al. 2017, arXiv 1707.06347      GRPO    Shao et al. 2024, arXiv 2402.03300
    Dr. GRPO        Liu et al. 2025, arXiv 2503.20783           RLOO    Ahmadian et al. 2024, arXiv 2402.14740
    DAPO            Yu et al. 2025, arXiv 2503.14476            GSPO    Zheng et al. 2025, arXiv 2507.18071
    k2, k3          Schulman 2020, joschu.net/blog/kl-approx

Each is a separate choice: advantage (`group_advantages`), per-token term (`PolicyConfig`), reduction
(`aggregate`). All tensors are (B, T) over completions' tokens, where `mask` is True.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from model.decoder import Decoder
from model.errors import UserError
from model.objectives.logprobs import sequence_logprobs

Advantage = Literal["grpo", "dr_grpo", "rloo"]
KL = Literal["k2", "k3"]
Reduction = Literal["token", "sequence", "constant"]


@dataclass(frozen=True)
class PolicyConfig:
    """The loss of a sampled batch. Defaults: Dr. GRPO, and k2, whose gradient is unbiased on policy."""

    advantage: Advantage = "dr_grpo"
    clip_low: float = 0.2
    clip_high: float = 0.2  # DAPO: 0.28
    ratio: Literal["token", "sequence"] = "token"  # sequence: GSPO, exp of the mean log-ratio
    kl: KL = "k2"
    kl_weight: float = 0.0
    reduction: Reduction = "constant"
    max_tokens: int = 128  # what "constant" divides each sequence's sum by

    def __post_init__(self) -> None:
        if self.clip_low < 0 or self.clip_high < 0 or self.kl_weight < 0 or self.max_tokens < 1:
            raise UserError("clip_low, clip_high and kl_weight must be at least 0, max_tokens at least 1")


class PolicyBatch(NamedTuple):
    """Sampled rows: prompt and completion, right-padded.

    mask_BT marks the completion's tokens; old_BT and reference_BT are log-probabilities (0 where not masked)
    of the sampling policy and of the reference; advantage_B is each row's; weight_B is 1, or 0 to leave a row
    out.
    """

    tokens_BT: Tensor
    mask_BT: Tensor
    old_BT: Tensor
    reference_BT: Tensor
    advantage_B: Tensor
    weight_B: Tensor


def group_advantages(rewards_B: Tensor, group: int, kind: Advantage = "dr_grpo") -> Tensor:
    """Rewards of samples, `group` consecutive ones for each prompt, to advantages (B,).

    grpo: (R - mean) / (std + 1e-6), std with n - 1;  dr_grpo: R - mean;  rloo: R - mean of the others.
    """
    if group < 2 or rewards_B.numel() % group:
        raise ValueError(f"{rewards_B.numel()} rewards don't make groups of {group}: a group is at least 2 samples")
    rewards = rewards_B.float().view(-1, group)
    centred = rewards - rewards.mean(1, keepdim=True)
    if kind == "grpo":
        centred = centred / (rewards.std(1, keepdim=True) + 1e-6)
    elif kind == "rloo":
        centred = centred * group / (group - 1)
    return centred.view(-1)


def kl_estimate(logp: Tensor, reference: Tensor, kind: KL) -> Tensor:
    """Per-token estimate of KL(policy || reference) from the policy's own samples.

    With d = log pi - log ref:  k2 = d^2 / 2;  k3 = exp(-d) - 1 + d. As a value k3 is unbiased; as a loss k2 has the
    right gradient. (k1 = d is unbiased too, but its expected gradient is zero: no loss.)
    """
    d = logp - reference
    if kind == "k2":
        return 0.5 * d.square()
    return torch.exp(-d) - 1 + d


def aggregate(terms_BT: Tensor, mask_BT: Tensor, reduction: Reduction, max_tokens: int) -> tuple[Tensor, Tensor]:
    """(sum, number to divide the global sum by).

    token: mean over all tokens of the global batch (DAPO); sequence: mean over sequences of each one's token
    mean (GRPO); constant: each sequence's sum / max_tokens, mean over sequences (Dr. GRPO).
    """
    mask = mask_BT.to(terms_BT.dtype)
    sequences = mask_BT.any(1).sum()
    if reduction == "token":
        return (terms_BT * mask).sum(), mask_BT.sum()
    sums = (terms_BT * mask).sum(1)
    if reduction == "sequence":
        return (sums / mask.sum(1).clamp(min=1)).sum(), sequences
    return (sums / max_tokens).sum(), sequences


def policy_loss(logp_BT: Tensor, batch: PolicyBatch, config: PolicyConfig) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(loss sum, count, sums to report): -min(r A, clip(r) A) + kl_weight * KL, r = pi / pi_old."""
    mask = batch.mask_BT & (batch.weight_B > 0)[:, None]
    kept = mask.to(logp_BT.dtype)
    log_ratio = (logp_BT - batch.old_BT) * kept
    if config.ratio == "sequence":
        mean = log_ratio.sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)
        log_ratio = mean.expand_as(log_ratio)
    ratio = log_ratio.exp()
    advantage = batch.advantage_B[:, None].to(ratio.dtype)
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    surrogate = torch.minimum(ratio * advantage, clipped * advantage)
    terms = -surrogate
    if config.kl_weight:
        terms = terms + config.kl_weight * kl_estimate(logp_BT, batch.reference_BT, config.kl)
    loss, count = aggregate(terms, mask, config.reduction, config.max_tokens)
    with torch.no_grad():
        per_token = count / mask.sum().clamp(min=1)  # extras are divided by count: make them token means
        extras = {
            "clipped": ((surrogate < ratio * advantage).to(kept.dtype) * kept).sum() * per_token,
            "entropy_estimate": -(logp_BT * kept).sum() * per_token,
        }
        if config.kl_weight:  # else the batch has no reference
            extras["kl"] = (kl_estimate(logp_BT, batch.reference_BT, "k3") * kept).sum() * per_token
    return loss, count, extras


def policy(model: Decoder, batch: PolicyBatch, config: PolicyConfig) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The objective for `trainer.train`: bind `config` with functools.partial."""
    logp_BT = sequence_logprobs(model, batch.tokens_BT, batch.mask_BT)
    return policy_loss(logp_BT, batch, config)
