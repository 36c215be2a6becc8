"""What keeps experts evenly used: two losses on a router's logits z or a bias on its choice; and the load they have.

Shapes: N tokens of a micro-batch, E experts, each token chooses k of them.

    p = softmax(z)    f_e: share of the N k choices that fell on e    P_e: mean of p_e over the tokens
    "loss"    L = E sum_e f_e P_e, 1 if all are even         Fedus et al. 2022, arXiv 2101.03961, equation 4
    "bias"    p + b choose; b_e += rate sign(mean load - load_e) after each step
                                                             Wang et al. 2024, arXiv 2408.15664, algorithm 1
    z-loss    mean over tokens of logsumexp(z)^2             Zoph et al. 2022, arXiv 2202.08906, equation 5

No objective knows of the losses: `attach` hands the logits on as they are, and when the gradient comes back
through them it adds the losses' own. That happens once for each micro-batch, also if the forward pass is
recomputed (activation checkpointing), and never without a gradient, so the load is tallied there too.

The losses are means over a micro-batch's tokens, pads included. The trainer adds up gradients of sums and divides by a
count in the end (valid tokens, pairs, ...), so each mean is first multiplied by its micro-batch's part of that count,
`divisor`: the result is a mean over all micro-batches and workers, weighted so.
"""

import torch
from torch import Tensor, nn

from model.part_configs import MoeConfig

STARVED = 0.1  # an expert with less than this share of the mean load learns next to nothing


class Balance(nn.Module):
    """Of one router."""

    bias: Tensor | None

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("bias", torch.zeros(config.n_experts) if config.balance == "bias" else None)
        self.divisor: Tensor | float = 1.0  # what the loss is divided by after the backward pass; 1: it is a mean
        self.tally: Tensor | None = None  # (E + 2,): choices of each expert, then divisor * both losses

    def init_weights(self) -> None:
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def preference(self, p_NE: Tensor) -> Tensor:
        """What the choice is made by; the chosen experts' weights are from p alone."""
        return p_NE if self.bias is None else p_NE + self.bias.float()

    def attach(self, logits_NE: Tensor, counts_E: Tensor) -> Tensor:
        """The logits; in training, with the losses' gradient behind them. counts_E: choices of each expert."""
        if not (self.training and torch.is_grad_enabled()):
            return logits_NE
        return _Attach.apply(logits_NE, counts_E, self)  # type: ignore[return-value]

    def gradient(self, logits_NE: Tensor, counts_E: Tensor) -> Tensor:
        """Of divisor * (balance_coef L + z_loss mean(logsumexp^2)) by the logits. Tallies the load as well."""
        N, E = logits_NE.shape
        p_NE, lse_N = torch.softmax(logits_NE, 1), torch.logsumexp(logits_NE, 1)
        f_E = counts_E / counts_E.sum()
        losses = torch.stack((E * (f_E * p_NE.mean(0)).sum(), lse_N.square().mean()))
        counted_E = counts_E.float() * (self.divisor > 0)  # rows without a loss are nobody's load
        tally = torch.cat((counted_E, losses * self.divisor))
        self.tally = tally if self.tally is None else self.tally + tally
        slope_NE = 2 * self.config.z_loss * lse_N[:, None]
        if self.config.balance == "loss":
            slope_NE = slope_NE + self.config.balance_coef * E * (f_E - (p_NE * f_E).sum(1, keepdim=True))
        return p_NE * slope_NE * (self.divisor / N)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_NE: Tensor, counts_E: Tensor, balance: Balance) -> Tensor:
        ctx.save_for_backward(logits_NE, counts_E)
        ctx.balance = balance
        return logits_NE.view_as(logits_NE)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return grads[0] + ctx.balance.gradient(*ctx.saved_tensors), None, None


class Balances:
    """All routers of a model as its trainer sees them; nothing, for a dense model.

    Before each backward pass `divide_by`; after a step's last one `take`; then all ranks' sums to `nudge` and
    `report`. A step's sums are one float32 vector: counts are exact up to 2^24 choices of one expert.
    """

    def __init__(self, model: nn.Module) -> None:
        blocks = enumerate(model.get_submodule("blocks").children())
        self.layers = {i: part for i, block in blocks for part in block.modules() if isinstance(part, Balance)}
        self.sizes = [balance.config.n_experts + 2 for balance in self.layers.values()]
        for balance in self.layers.values():
            balance.tally = None

    def divide_by(self, count: Tensor) -> None:
        """The micro-batch's part of the number that the step's sums will be divided by."""
        for balance in self.layers.values():
            balance.divisor = count

    def take(self, sums: Tensor) -> None:
        """Move this rank's tallies of the step into `sums`, a vector of zeros of sum(sizes)."""
        for balance, part in zip(self.layers.values(), sums.split(self.sizes), strict=True):
            if balance.tally is not None:
                part.copy_(balance.tally)
            balance.divisor, balance.tally = 1.0, None

    def nudge(self, sums: Tensor) -> None:
        """The loss-free biases, one step up for experts below the mean load and down for those above it."""
        for balance, tally in zip(self.layers.values(), sums.split(self.sizes), strict=True):
            if balance.bias is not None:
                load_E = tally[:-2]
                balance.bias += balance.config.bias_rate * torch.sign(load_E.mean() - load_E)

    def report(self, sums: Tensor, count: int) -> dict[str, float]:
        """How evenly each layer's experts are used.

        Load of the fullest over the mean, coefficient of variation, number of experts with less than a tenth of the
        mean, both losses (without their coefficients), and each expert's share.
        """
        values: dict[str, float] = {}
        for number, tally in zip(self.layers, sums.cpu().split(self.sizes), strict=True):
            load_E, losses = tally[:-2], tally[-2:] / count
            relative_E = load_E / load_E.mean().clamp(min=1e-9)
            name = f"moe/layer{number}"
            values[f"{name}/max_over_mean"] = float(relative_E.max())
            values[f"{name}/variation"] = float(relative_E.std(correction=0))
            values[f"{name}/starved"] = float((relative_E < STARVED).sum())
            values[f"{name}/balance_loss"], values[f"{name}/z_loss"] = losses.tolist()
            shares = (relative_E / len(load_E)).tolist()
            values |= {f"{name}/expert{expert}": share for expert, share in enumerate(shares)}
        return values
