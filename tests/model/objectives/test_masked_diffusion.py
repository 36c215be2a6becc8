"""The bound against sums over every way of hiding, over every order, and over time."""

import itertools
import math

import numpy as np
import pytest
import torch
from small_models import SMALL, lively, random_tokens

from model.config import ModelConfig
from model.decoder import Decoder
from model.objectives.masked_diffusion import MaskedBatch, hide, likelihood_bound, masked_diffusion
from model.objectives.next_token import IGNORE, Batch
from model.train_config import TrainConfig
from model.trainer import train

CONFIG = ModelConfig(**SMALL, causal=False)
MASK = CONFIG.vocab_size - 1


def packed(rows: list[list[int]], length: int = 24, seed: int = 0, prompt: int = 1) -> Batch:
    """Rows of documents of these lengths; the first `prompt` tokens of each are always visible."""
    tokens = random_tokens(len(rows), length, vocab_size=MASK, seed=seed)
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in rows])
    return Batch(tokens, torch.where(positions < prompt, IGNORE, tokens), positions)


def samples(first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count)


def documents(batch: Batch | MaskedBatch) -> list[tuple[int, slice]]:
    found = []
    for row, positions in enumerate(batch.positions_BT.tolist()):
        starts = [*(i for i, p in enumerate(positions) if p == 0), len(positions)]
        found += [(row, slice(a, b)) for a, b in itertools.pairwise(starts)]
    return found


ROWS = [[24], [10, 14], [3, 1, 20], [2, 2, 2, 18]]


def test_what_is_hidden_is_weighted_by_n_over_k_and_what_is_visible_is_carried_over():
    batch = packed(ROWS, prompt=2)
    masked = hide(batch, MASK, samples(4, 4), 4)
    hidden = masked.tokens_BT == MASK
    assert torch.equal(masked.tokens_BT[~hidden], batch.tokens_BT[~hidden])
    assert torch.equal(masked.targets_BT, torch.where(hidden, batch.tokens_BT, IGNORE))
    assert not hidden[batch.targets_BT == IGNORE].any()
    assert masked.maskable_B.tolist() == [22, 20, 18 + 1, 16]
    assert (masked.weights_BT[~hidden] == 0).all()
    for row, at in documents(batch):
        n, k = int((batch.targets_BT[row, at] != IGNORE).sum()), int(hidden[row, at].sum())
        assert (k >= 1) == (n >= 1)
        torch.testing.assert_close(masked.weights_BT[row, at][hidden[row, at]], torch.full((k,), n / max(k, 1)))


def test_every_number_of_tokens_and_every_token_is_hidden_as_often():
    n, steps, size = 5, 500, 4
    batch = packed([[6]] * size, 6)
    counts, places = torch.zeros(n + 1), torch.zeros(n)
    for step in range(steps):
        hidden = hide(batch, MASK, samples(step * size, size), size).tokens_BT[:, 1:] == MASK
        counts += torch.bincount(hidden.sum(1), minlength=n + 1)
        places += hidden.sum(0)
    total = steps * size
    assert counts[0] == 0
    assert (counts[1:] - total / n).abs().max() < 4 * math.sqrt(total / n)
    mean = total * (n + 1) / (2 * n)  # the mean of k / n
    assert (places - mean).abs().max() < 4 * math.sqrt(total / 4)


def test_one_step_s_documents_are_spread_evenly_over_time():
    """As many rows as tokens: every number of hidden tokens exactly once, in every step."""
    batch = packed([[9]] * 8, 9)
    for step in range(20):
        hidden = hide(batch, MASK, samples(8 * step, 8), 8).tokens_BT == MASK
        assert sorted(hidden.sum(1).tolist()) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_documents_of_a_row_have_times_of_their_own():
    batch = packed([[9] * 16], 144)
    hidden = (hide(batch, MASK, samples(3, 1), 1).tokens_BT == MASK).view(16, 9).sum(1)
    assert sorted(set(hidden.tolist())) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_noise_depends_on_the_sample_and_the_seed_alone():
    batch, numbers = packed(ROWS), samples(40, 4)
    whole = hide(batch, MASK, numbers, 4, seed=3)
    for cut in (1, 2):
        parts = [
            hide(Batch(*(x[at] for x in batch)), MASK, numbers[at], 4, seed=3) for at in (slice(cut), slice(cut, None))
        ]
        assert all(torch.equal(torch.cat(ab), x) for *ab, x in zip(*parts, whole, strict=True))
    others = [hide(batch, MASK, samples(44, 4), 4, seed=3), hide(batch, MASK, numbers, 4, seed=4)]
    assert all(not torch.equal(other.tokens_BT, whole.tokens_BT) for other in others)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_loss_is_the_weighted_sum_over_each_document_alone(softcap):
    model = lively(ModelConfig(**SMALL, causal=False, logit_softcap=softcap))
    masked = hide(packed(ROWS), MASK, samples(0, 4), 4)
    loss, count, extras = masked_diffusion(model, masked)
    expected = torch.zeros(())
    for row, at in documents(masked):
        hidden = masked.tokens_BT[row, at] == MASK
        states, _ = model(masked.tokens_BT[row : row + 1, at])
        logp = model.logits(states)[0, :, :MASK].log_softmax(-1)
        picked = logp[hidden].gather(1, masked.targets_BT[row, at][hidden][:, None]).squeeze(1)
        expected = expected - (picked * masked.weights_BT[row, at][hidden]).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    assert int(count) == sum(23 - (len(row) - 1) for row in ROWS) and extras == {}
    gradients = [torch.autograd.grad(x, list(model.parameters()), allow_unused=True) for x in (loss, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_micro_batches_sum_to_the_batch():
    model, masked = lively(CONFIG), hide(packed(ROWS), MASK, samples(0, 4), 4)
    whole, count, _ = masked_diffusion(model, masked)
    parts = [masked_diffusion(model, MaskedBatch(*(x[i : i + 1] for x in masked))) for i in range(4)]
    torch.testing.assert_close(sum(p[0] for p in parts), whole, rtol=1e-5, atol=1e-4)
    assert sum(int(p[1]) for p in parts) == int(count)


N = 4  # tokens that may be hidden, after one that may not


@torch.no_grad()
def losses_of_every_hiding(model: Decoder, tokens: torch.Tensor) -> dict[frozenset[int], dict[int, float]]:
    """-log p of each hidden token, for each set of hidden ones."""
    found = {}
    for size in range(1, N + 1):
        for hidden in itertools.combinations(range(1, N + 1), size):
            row = tokens.clone()
            row[list(hidden)] = MASK
            logp = model.logits(model(row[None])[0])[0, :, :MASK].log_softmax(-1)
            found[frozenset(hidden)] = {i: -float(logp[i, tokens[i]]) for i in hidden}
    return found


def exact_bound(losses: dict[frozenset[int], dict[int, float]]) -> float:
    """The chain rule averaged over all orders."""
    total, orders = 0.0, list(itertools.permutations(range(1, N + 1)))
    for order in orders:
        total += sum(losses[frozenset(order[i:])][order[i]] for i in range(N))
    return total / len(orders)


def test_the_estimate_converges_to_the_mean_over_all_orders_which_is_the_integral_over_time():
    model, tokens = lively(CONFIG), random_tokens(N + 1, vocab_size=MASK)
    losses = losses_of_every_hiding(model, tokens)
    exact = exact_bound(losses)
    nodes, weights = np.polynomial.legendre.leggauss(8)  # exact for these polynomials of t
    integral = sum(
        w / 2 / t * sum(t ** len(s) * (1 - t) ** (N - len(s)) * sum(loss.values()) for s, loss in losses.items())
        for t, w in zip((nodes + 1) / 2, weights, strict=True)
    )
    assert integral == pytest.approx(exact, rel=1e-6)

    count = 400
    batch = Batch(
        tokens.expand(count, -1), torch.cat((torch.tensor([IGNORE]), tokens[1:])).expand(count, -1),
        torch.arange(N + 1).expand(count, -1),
    )  # fmt: skip
    bounds, variances = likelihood_bound(model, batch, torch.arange(count), samples=8)
    error = float(variances.sum().sqrt()) / count
    assert error < 0.01 * exact
    assert abs(float(bounds.mean()) - exact) < 4 * error
    assert 0.7 < float(bounds.var()) / float(variances.mean()) < 1.4, "the standard error is an honest one"

    total = torch.zeros(())
    with torch.no_grad():
        for step in range(20):  # the training loss estimates the same
            masked = hide(batch, MASK, samples(step * count, count), count)
            total += masked_diffusion(model, masked)[0] / count / 20
    assert float(total) == pytest.approx(exact, rel=0.01)


def context_free() -> tuple[Decoder, torch.Tensor]:
    """A model whose distribution is the same everywhere, and its logarithm, (V,) without [MASK]."""
    model = lively(ModelConfig(**SMALL, causal=False, norm="layernorm", bias=True))
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.normal_(generator=torch.Generator().manual_seed(1))
        return model, model.logits(model.norm.bias)[:MASK].log_softmax(-1)


def test_a_model_that_ignores_the_context_gets_the_unigram_cross_entropy():
    model, logp = context_free()
    assert float(logp.exp().sum()) == pytest.approx(1), "[MASK] has no probability"
    same = packed([[24]], seed=1)
    same.tokens_BT[:, 1:] = 7
    same.targets_BT[:, 1:] = 7
    bound, variance = likelihood_bound(model, same, torch.arange(1), samples=2)
    assert float(bound) == pytest.approx(-23 * float(logp[7]), rel=1e-6) and float(variance) < 1e-6
    batch = packed(ROWS * 8)
    bounds, variances = likelihood_bound(model, batch, torch.arange(32), samples=8)
    exact = -sum(float(logp[t]) for t in batch.targets_BT[batch.targets_BT != IGNORE])
    assert abs(float(bounds.sum()) - exact) < 4 * float(variances.sum().sqrt()) < 0.1 * exact


def test_a_row_s_bound_does_not_depend_on_its_batch():
    model, batch = lively(CONFIG), packed(ROWS)
    together, _ = likelihood_bound(model, batch, torch.tensor([7, 8, 9, 10]))
    alone, _ = likelihood_bound(model, Batch(*(x[2:3] for x in batch)), torch.tensor([9]))
    assert float(alone) == pytest.approx(float(together[2]), rel=1e-5)


def test_the_loss_falls():
    """A row repeats its first token, which is never hidden: a unigram model pays log 20 for each."""
    model, size = Decoder(CONFIG).init_weights(0), 16

    def batches(step: int) -> MaskedBatch:
        tokens = random_tokens(size, 1, vocab_size=20, seed=step).expand(size, 12)
        positions = torch.arange(12).expand(size, 12)
        batch = Batch(tokens, torch.where(positions == 0, IGNORE, tokens), positions)
        return hide(batch, MASK, samples(step * size, size), size)

    losses = []
    config = TrainConfig(steps=60, batch_size=size, seq_len=12, lr=1e-2, warmup_steps=5, checkpoint_every=0)
    train(model, batches, config, objective=masked_diffusion, on_step=lambda report: losses.append(report.loss))
    assert np.mean(losses[-10:]) < 0.5 * math.log(20) < math.log(20) < np.mean(losses[:3])


def test_what_can_t_be_estimated_is_refused():
    batch = packed(ROWS)
    for count in (0, 3):
        with pytest.raises(ValueError, match="even and at least 2"):
            likelihood_bound(lively(CONFIG), batch, torch.arange(4), samples=count)
    with pytest.raises(ValueError, match="not a bound"):
        likelihood_bound(lively(ModelConfig(**SMALL)), batch, torch.arange(4))
