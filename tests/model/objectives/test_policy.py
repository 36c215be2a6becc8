"""Advantages, the clipped surrogate, KL estimates and reductions, against loops and closed forms."""

import math
from functools import partial

import pytest
import torch
from small_models import SHAPES, lively, random_tokens

from model.objectives.policy import (
    PolicyBatch,
    PolicyConfig,
    aggregate,
    group_advantages,
    kl_estimate,
    policy,
    policy_loss,
)


def make_batch(seed=0, rows=6, length=9) -> tuple[torch.Tensor, PolicyBatch]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length - 1, (rows,), generator=generator)
    mask = (torch.arange(length) >= 1) & (torch.arange(length) <= lengths[:, None])
    logp, old, ref = (-(torch.rand(rows, length, generator=generator) + 0.5) * mask for _ in range(3))
    advantage = torch.randn(rows, generator=generator)
    batch = PolicyBatch(random_tokens(rows, length), mask, old, ref, advantage, torch.ones(rows))
    return logp.double(), PolicyBatch(*(x.double() if x.is_floating_point() else x for x in batch))


def by_hand(logp, batch, config) -> float:
    """One token at a time, in Python floats."""
    sequences, tokens = [], 0
    for b in range(logp.shape[0]):
        if not batch.weight_B[b]:
            continue
        at = [t for t in range(logp.shape[1]) if batch.mask_BT[b, t]]
        logs = [float(logp[b, t] - batch.old_BT[b, t]) for t in at]
        if config.ratio == "sequence":
            logs = [sum(logs) / len(logs)] * len(logs)
        terms = []
        for t, log in zip(at, logs, strict=True):
            r, a = math.exp(log), float(batch.advantage_B[b])
            clipped = min(max(r, 1 - config.clip_low), 1 + config.clip_high)
            d = float(batch.reference_BT[b, t] - logp[b, t])
            kl = {"k2": d * d / 2, "k3": math.exp(d) - d - 1}[config.kl]
            terms.append(-min(r * a, clipped * a) + config.kl_weight * kl)
        sequences.append(terms)
        tokens += len(terms)
    if config.reduction == "token":
        return sum(map(sum, sequences)) / tokens
    if config.reduction == "sequence":
        return sum(sum(s) / len(s) for s in sequences) / len(sequences)
    return sum(sum(s) for s in sequences) / len(sequences) / config.max_tokens


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("kl", ["k2", "k3"])
@pytest.mark.parametrize("reduction", ["token", "sequence", "constant"])
def test_the_loss_equals_a_loop_over_tokens(ratio, kl, reduction):
    logp, batch = make_batch()
    config = PolicyConfig(
        clip_low=0.1, clip_high=0.3, ratio=ratio, kl=kl, kl_weight=0.2, reduction=reduction, max_tokens=7
    )
    loss, count, _ = policy_loss(logp, batch, config)
    assert float(loss / count) == pytest.approx(by_hand(logp, batch, config), rel=1e-9)
    dropped = batch._replace(weight_B=torch.tensor([1.0, 0, 1, 1, 0, 1]))
    loss, count, _ = policy_loss(logp, dropped, config)
    assert float(loss / count) == pytest.approx(by_hand(logp, dropped, config), rel=1e-9)


@pytest.mark.parametrize("reduction", ["token", "sequence", "constant"])
def test_micro_batches_sum_to_the_batch(reduction):
    logp, batch = make_batch()
    config = PolicyConfig(kl_weight=0.1, reduction=reduction)
    whole, count, _ = policy_loss(logp, batch, config)
    parts = [policy_loss(logp[i : i + 2], PolicyBatch(*(x[i : i + 2] for x in batch)), config) for i in range(0, 6, 2)]
    assert float(sum(p[0] for p in parts)) == pytest.approx(float(whole))
    assert int(sum(p[1] for p in parts)) == int(count)


def test_the_gradient_equals_finite_differences():
    logp, batch = make_batch()
    for ratio in ("token", "sequence"):
        config = PolicyConfig(ratio=ratio, kl_weight=0.3, kl="k2", reduction="token")
        inputs = logp.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x, c=config: policy_loss(x, batch, c)[0], (inputs,))


def test_on_policy_the_gradient_is_reinforce():
    logp, batch = make_batch()
    batch = batch._replace(old_BT=logp.clone())
    inputs = logp.clone().requires_grad_()
    policy_loss(inputs, batch, PolicyConfig(reduction="token"))[0].backward()
    torch.testing.assert_close(inputs.grad, -batch.advantage_B[:, None] * batch.mask_BT)


def test_a_clipped_token_has_no_gradient_only_where_the_advantage_pushes_further():
    mask = torch.tensor([[False, True, True]])
    old = torch.zeros(1, 3)
    for advantage, moved in ((1.0, [False, False, True]), (-1.0, [False, True, False])):
        logp = torch.tensor([[0.0, 0.5, -0.5]], requires_grad=True)
        batch = PolicyBatch(mask.long(), mask, old, old, torch.tensor([advantage]), torch.ones(1))
        policy_loss(logp, batch, PolicyConfig(reduction="token"))[0].backward()
        assert (logp.grad != 0).tolist() == [moved]


def test_advantages_follow_their_formulas():
    rewards = torch.tensor([1.0, 0, 0, 1, 5, 5, 5, 5])
    half = torch.tensor([0.5, -0.5, -0.5, 0.5, 0, 0, 0, 0])
    torch.testing.assert_close(group_advantages(rewards, 4, "dr_grpo"), half)
    torch.testing.assert_close(group_advantages(rewards, 4, "rloo"), half * 4 / 3)
    torch.testing.assert_close(group_advantages(rewards, 4, "grpo"), half / (math.sqrt(1 / 3) + 1e-6))
    for kind in ("dr_grpo", "rloo", "grpo"):
        assert group_advantages(rewards, 4, kind)[4:].abs().max() == 0


def test_rloo_leaves_each_sample_out_of_its_own_baseline():
    rewards = torch.tensor([3.0, 1.0, 8.0])
    expected = [3 - (1 + 8) / 2, 1 - (3 + 8) / 2, 8 - (3 + 1) / 2]
    assert group_advantages(rewards, 3, "rloo").tolist() == pytest.approx(expected)


def test_rewards_that_make_no_groups_are_refused():
    with pytest.raises(ValueError, match="5 rewards don't make groups of 2"):
        group_advantages(torch.zeros(5), 2)


def test_k3_estimates_the_kl_and_k2_has_its_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, generator=generator, dtype=torch.double, requires_grad=True)
    reference = torch.randn(10, generator=generator, dtype=torch.double).log_softmax(0)
    logp = logits.log_softmax(0)
    kl = (logp.exp() * (logp - reference)).sum()
    estimated = (logp.exp() * kl_estimate(logp, reference, "k3")).sum()  # the exact expectation over the policy
    assert float(estimated.detach()) == pytest.approx(float(kl.detach()))
    (expected,) = torch.autograd.grad(kl, logits, retain_graph=True)
    for kind, right in (("k2", True), ("k3", False)):
        loss = (logp.detach().exp() * kl_estimate(logp, reference, kind)).sum()  # samples don't move with the weights
        (given,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert torch.allclose(given, expected) == right


def test_aggregate_counts_what_it_divides_by():
    terms = torch.ones(2, 5)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]).bool()
    assert [float(x) for x in aggregate(terms, mask, "token", 8)] == [6, 6]
    assert [float(x) for x in aggregate(terms, mask, "sequence", 8)] == [2, 2]
    assert [float(x) for x in aggregate(terms, mask, "constant", 8)] == [6 / 8, 2]


def test_a_step_on_the_model_raises_what_was_rewarded():
    model = lively(SHAPES["llama"])
    tokens = random_tokens(4, 10)
    mask = torch.zeros(4, 10, dtype=torch.bool)
    mask[:, 4:] = True
    advantage = torch.tensor([1.0, -1, 1, -1])
    objective = partial(policy, config=PolicyConfig(reduction="token", kl_weight=0.01))
    from model.objectives.logprobs import sequence_logprobs

    with torch.no_grad():
        old = sequence_logprobs(model, tokens, mask)
    batch = PolicyBatch(tokens, mask, old, old, advantage, torch.ones(4))
    loss, count, extras = objective(model, batch)
    assert abs(float(extras["kl"])) < 1e-5 and float(extras["clipped"]) == 0
    (loss / count).backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.02 * p.grad
        new = sequence_logprobs(model, tokens, mask)
    change = (new - old).sum(1) * advantage
    assert change.sum() > 0.1
