"""Masked diffusion: learn to fill in hidden tokens from all the others.

MDLM (Sahoo et al. 2024, arXiv 2406.07524) and LLaDA (Nie et al. 2025, arXiv 2502.09992).

    t ~ U(0, 1];  each of a document's n tokens is hidden, [MASK] in its place, with probability t
    -log p(x)  <=  E_t E_hidden  1/t * sum over hidden i of  -log p(x_i | what is not hidden)

The right side is also the chain rule's sum, averaged over all orders of the tokens. It stays the same if a fixed number
is hidden, k of n with k uniform on 1 .. n, and weighted by n/k: LLaDA's form for evaluation, here used for training
too, with k = ceil(t n). For 1/t alone has no finite variance near t = 0 and is cut off there in practice, which leaves
a bias; n/k is at most n, and no document is left without a loss.

No time conditioning: what is hidden tells t. MDLM's SUBS: [MASK] is never predicted, since its row of the head, the
last one, is left out; what is visible is carried over, since only hidden tokens are ever predicted.

A batch's targets are its own tokens where one may be hidden, IGNORE where it is always visible (a prompt). So a packed
row has the same tokens in and out, the last of a document among them; cluster/data/rows.py makes such rows with
`ahead=0`. A document's first token, the beginning of sequence, is given, as it is to a next-token model.

Noise belongs to the data: what is hidden of the run's sample number s is a function of (seed, s), so micro-batches,
workers and resumes change nothing. Over a step's documents t is spread evenly (MDLM's low-discrepancy sampler).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from model.config import ModelConfig
from model.decoder import Decoder
from model.generate.sampling import uniform
from model.objectives.logprobs import token_logprobs
from model.objectives.next_token import IGNORE, Batch, cross_entropy
from model.seeds import int64
from model.segments import Segments
from model.train_config import TrainConfig

GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, are spread evenly however many there are


class MaskedBatch(NamedTuple):
    """Rows of packed documents with hidden tokens.

    (B, T): tokens with [MASK] where one is hidden; targets, the hidden tokens, IGNORE elsewhere; positions, as in
    `Batch`; weights, float32, n/k of the hidden, 0 elsewhere. maskable_B: tokens that could have been hidden.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    positions_BT: Tensor
    weights_BT: Tensor
    maskable_B: Tensor


class MaskedDiffusion:
    """The objective `masked_diffusion`; see registry.py for the interface."""

    def __init__(self, train: TrainConfig, model: ModelConfig, seed: int = 0) -> None:
        assert model.mask_id is not None
        self.mask_id, self.batch_size, self.z_loss, self.seed = model.mask_id, train.batch_size, train.z_loss, seed

    def batch(self, rows: Batch, samples_B: Tensor) -> MaskedBatch:
        return hide(rows, self.mask_id, samples_B, self.batch_size, self.seed)

    def loss(self, decoder: Decoder, batch: MaskedBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return masked_diffusion(decoder, batch, z_loss=self.z_loss)


def masked_diffusion(
    model: Decoder, batch: MaskedBatch, *, z_loss: float = 0.0
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The objective for `trainer.train`: (loss_sum, maskable tokens, {}).

    Their ratio estimates the bound, nats per token, without bias: the number does not depend on what was hidden.
    """
    hidden_BTD, _ = model(batch.tokens_BT, segments=Segments.from_positions(batch.positions_BT))
    loss, _ = cross_entropy(
        hidden_BTD.flatten(0, 1),
        model.head_weight[:-1],  # all but [MASK]
        batch.targets_BT.flatten(),
        model.config.logit_softcap,
        z_loss,
        batch.weights_BT.flatten(),
    )
    return loss, batch.maskable_B.sum(), {}


def hide(batch: Batch, mask_id: int, samples_B: Tensor, batch_size: int, seed: int = 0) -> MaskedBatch:
    """Hide tokens of some rows of a training step.

    Args:
        batch: its targets are the tokens themselves where they may be hidden, else IGNORE.
        samples_B: the number of each row among all samples of the run.
        batch_size: rows of the global batch.
    """
    # Document d of row i of a step with the random number u: t = 1 - (u + i / B + d * golden) mod 1.
    seeds = torch.tensor(int64(seed), device=samples_B.device)
    shift_B = uniform(seeds, 0, samples_B // batch_size) + (samples_B % batch_size) / batch_size
    t_BT = 1 - (shift_B[:, None] + GOLDEN * _documents(batch.positions_BT)) % 1
    return _hide(batch, mask_id, t_BT, uniform(seeds, 1, samples_B[:, None], _places(batch.positions_BT)))


@torch.no_grad()
def likelihood_bound(
    model: Decoder, batch: Batch, rows_B: Tensor, samples: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Estimates of each row's bound of -log p(its targets | its other tokens), and the variances of the estimates.

    Args:
        batch: as for `hide`; a row is the sum of its documents.
        rows_B: a number for each row, that its noise depends on; its batch changes nothing.
        samples: how many ways of hiding are averaged; even, since the difference of two halves tells the variance.
            Within a half, t is spread evenly.
    Returns:
        (bound_B in nats, variance_B in nats^2), float64.
    """
    if samples < 2 or samples % 2:
        raise ValueError(f"samples = {samples} must be even and at least 2: the difference of two halves is the error")
    mask_id = model.config.mask_id
    if mask_id is None:
        raise ValueError("a causal model has a likelihood, not a bound")
    seeds, rows_B1, strata = torch.tensor(int64(seed), device=rows_B.device), rows_B[:, None], samples // 2
    documents_BT, places = _documents(batch.positions_BT), _places(batch.positions_BT)
    halves = torch.zeros(2, rows_B.shape[0], dtype=torch.float64, device=rows_B.device)
    for half in range(2):
        u_BT = uniform(seeds, 2, half, rows_B1, documents_BT)
        for stratum in range(strata):
            draws_BT = uniform(seeds, 3, half, stratum, rows_B1, places)
            masked = _hide(batch, mask_id, 1 - (stratum + u_BT) / strata, draws_BT)
            halves[half] += _row_sums(model, masked) / strata
    return halves.mean(0), (halves[0] - halves[1]).square() / 4


def _row_sums(model: Decoder, batch: MaskedBatch) -> Tensor:
    """(B,) float64: the weighted sum of -log p of each row's hidden tokens."""
    hidden_BTD, _ = model(batch.tokens_BT, segments=Segments.from_positions(batch.positions_BT))
    rows, times = (batch.targets_BT != IGNORE).nonzero(as_tuple=True)
    logp = token_logprobs(
        hidden_BTD[rows, times], model.head_weight[:-1], batch.targets_BT[rows, times], model.config.logit_softcap
    )
    sums_B = torch.zeros(batch.tokens_BT.shape[0], dtype=torch.float64, device=logp.device)
    return sums_B.index_add_(0, rows, -logp.double() * batch.weights_BT[rows, times])


def _hide(batch: Batch, mask_id: int, t_BT: Tensor, draws_BT: Tensor) -> MaskedBatch:
    """Of each document's n maskable tokens hide the ceil(t n) with the smallest draws (t is its document's)."""
    maskable_BT, documents_BT = batch.targets_BT != IGNORE, _documents(batch.positions_BT)
    counts = torch.zeros_like(documents_BT).scatter_add_(1, documents_BT, maskable_BT.long())
    n_BT = counts.gather(1, documents_BT)
    k_BT = (t_BT * n_BT).ceil()
    # By document, then maskable ones first, then by draw: the place after the document's start is the rank.
    order = (documents_BT + (draws_BT + ~maskable_BT) / 2).argsort(1)
    places_BT = _places(batch.positions_BT).expand_as(order)
    starts_BT = torch.where(_starts(batch.positions_BT), places_BT, 0).cummax(1).values
    rank_BT = torch.empty_like(order).scatter_(1, order, places_BT) - starts_BT
    hidden_BT = maskable_BT & (rank_BT < k_BT)
    return MaskedBatch(
        torch.where(hidden_BT, mask_id, batch.tokens_BT),
        torch.where(hidden_BT, batch.targets_BT, IGNORE),
        batch.positions_BT,
        torch.where(hidden_BT, n_BT / k_BT, 0.0).float(),
        maskable_BT.sum(1),
    )


def _places(positions_BT: Tensor) -> Tensor:
    return torch.arange(positions_BT.shape[1], device=positions_BT.device)


def _starts(positions_BT: Tensor) -> Tensor:
    return Segments.from_positions(positions_BT).starts_BT


def _documents(positions_BT: Tensor) -> Tensor:
    """(B, T): which document of its row each token is of, from 0."""
    return _starts(positions_BT).cumsum(1) - 1
