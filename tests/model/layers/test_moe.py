"""Mixture of experts against a loop over tokens, `transformers`, and the formulas of its losses."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_equal_up_to_rounding, rounding
from small_models import SMALL, lively, random_tokens
from torch import Tensor
from transformers import MixtralConfig, Qwen3MoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from model.balance import Balances
from model.config import ModelConfig
from model.count import parameters
from model.decoder import Decoder
from model.layers.feed_forward import FeedForward
from model.layers.moe import MoE
from model.objectives.next_token import IGNORE, Batch, next_token
from model.optim.groups import make_optimizers
from model.optim.muon import Muon
from model.part_configs import MoeConfig
from model.train_config import TrainConfig
from model.trainer import train

EXPERTS = MoeConfig(n_experts=4, top_k=2, d_ff=24)
SHAPE = ModelConfig(**SMALL, ff_pattern=("dense", "moe"), moe=EXPERTS)


def layer(shape: ModelConfig = SHAPE, seed: int = 0, **changes) -> MoE:
    moe = MoE(replace(shape, moe=replace(shape.moe, **changes)))
    generator = torch.Generator().manual_seed(seed)
    moe.init_weights(generator, 0.3, 0.3)
    return moe.eval()


def inputs(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, 32, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def naive(moe: MoE, x_BTD: Tensor) -> Tensor:
    """Token by token, choice by choice."""
    act = {
        "swiglu": F.silu,
        "geglu": lambda h: F.gelu(h, approximate="tanh"),
        "gelu": lambda h: F.gelu(h, approximate="tanh"),
        "relu2": lambda h: F.relu(h) ** 2,
    }[moe.kind]
    rows = []
    for x in x_BTD.reshape(-1, 32):
        p = torch.softmax(moe.router.weight @ x, 0)
        preferred = p if moe.balance.bias is None else p + moe.balance.bias
        chosen = sorted(range(len(p)), key=lambda e, s=preferred.tolist(): -s[e])[: moe.top_k]
        total = sum(p[e] for e in chosen) if moe.normalise else 1
        y = 0 if moe.shared is None else moe.shared(x)
        for e in chosen:
            up = moe.up[e] @ x
            h = act(up) if moe.gate is None else act(moe.gate[e] @ x) * up
            y = y + p[e] / total * (moe.down[e] @ h)
        rows.append(y)
    return torch.stack(rows).view_as(x_BTD)


def gradients(y: Tensor, x: Tensor, moe: torch.nn.Module) -> list[Tensor]:
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(7))
    return list(torch.autograd.grad((y * weight).sum(), [x, *moe.parameters()]))


def same_as_naive(moe: MoE, x: Tensor) -> None:
    def results(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        y = run(x)
        return [y, *gradients(y, x, moe)]

    moved = rounding(lambda: results(moe), [x, *moe.parameters()])
    assert_equal_up_to_rounding(results(moe), results(lambda x: naive(moe, x)), moved)


@pytest.mark.parametrize("kind", ["swiglu", "geglu", "gelu", "relu2"])
@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize(("normalise", "n_shared", "balance"), [(True, 0, "none"), (False, 2, "bias")])
def test_equals_a_loop_over_tokens_with_gradients(kind, top_k, normalise, n_shared, balance):
    shape = replace(SHAPE, feed_forward=kind)
    moe = layer(shape, top_k=top_k, normalise=normalise, n_shared=n_shared, balance=balance)
    if moe.balance.bias is not None:
        moe.balance.bias.copy_(torch.tensor([0.3, -0.2, 0.0, 0.1]))
    same_as_naive(moe, inputs(3, 7))


@pytest.mark.parametrize("tokens", [1, 9])
def test_experts_without_a_token_get_a_gradient_of_zero(tokens):
    """All tokens to experts 2 and 3, or a single token."""
    moe = layer()
    x = inputs(1, tokens)
    with torch.no_grad():
        x[..., 0] = 3
        moe.router.weight[:, 0] = torch.tensor([-20.0, -20, 10, 20])
    same_as_naive(moe, x)
    moe(x).sum().backward()
    assert moe.up.grad[:2].eq(0).all() and moe.up.grad[2:].ne(0).any()


def test_equals_mixtral_s_block_of_transformers():
    theirs = MixtralSparseMoeBlock(
        MixtralConfig(hidden_size=32, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2)
    )
    same_as_theirs(theirs, layer())


def test_equals_qwen3_s_block_of_transformers_whose_weights_are_not_normalised():
    config = Qwen3MoeConfig(
        hidden_size=32, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2, norm_topk_prob=False
    )
    same_as_theirs(Qwen3MoeSparseMoeBlock(config), layer(normalise=False))


def same_as_theirs(theirs: torch.nn.Module, moe: MoE) -> None:
    given = dict(theirs.named_parameters())
    stacked = given["experts.gate_up_proj"], given["experts.down_proj"]
    with torch.no_grad():
        given["gate.weight"].copy_(moe.router.weight)
        stacked[0].copy_(torch.cat((moe.gate, moe.up), 1))
        stacked[1].copy_(moe.down)
    x = inputs(2, 11)
    expected, ours = theirs(x), moe(x)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7))
    (expected * weight).sum().backward()
    dx, d_gate, d_up, d_down, d_router = gradients(ours, x, moe)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(dx, x.grad, **close)
    torch.testing.assert_close(d_router, given["gate.weight"].grad, **close)
    torch.testing.assert_close(torch.cat((d_gate, d_up), 1), stacked[0].grad, **close)
    torch.testing.assert_close(d_down, stacked[1].grad, **close)


def test_equal_experts_are_one_dense_feed_forward():
    dense = FeedForward(SHAPE, 24)
    dense.init_weights(torch.Generator().manual_seed(0), 0.3, 0.3)
    moe = layer()
    with torch.no_grad():
        for stack, linear in ((moe.gate, dense.gate), (moe.up, dense.up), (moe.down, dense.down)):
            stack.copy_(linear.weight.expand_as(stack))
    x = inputs(2, 30)
    torch.testing.assert_close(moe(x), dense(x), atol=1e-5, rtol=1e-5)
    ours, theirs = gradients(moe(x), x, moe), gradients(dense(x), x, dense)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-4, rtol=1e-4)
    for stack, linear in zip(ours[1:4], theirs[1:], strict=True):
        torch.testing.assert_close(stack.sum(0), linear, atol=1e-4, rtol=1e-4)


def losses(moe: MoE, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(load-balancing loss, z-loss, choices of each expert), straight from the papers."""
    z = x.reshape(-1, 32) @ moe.router.weight.T
    p = z.exp() / z.exp().sum(1, keepdim=True)
    preferred = p if moe.balance.bias is None else p + moe.balance.bias
    chosen = F.one_hot(preferred.topk(moe.top_k).indices, z.shape[1]).sum((0, 1)).float()
    balance = sum(z.shape[1] * chosen[e] / chosen.sum() * p[:, e].mean() for e in range(z.shape[1]))
    return balance, (z.exp().sum(1).log() ** 2).mean(), chosen


@pytest.mark.parametrize("balance", ["loss", "bias", "none"])
def test_the_losses_reach_the_router_and_what_is_before_it(balance):
    moe = layer(balance=balance, balance_coef=0.3, z_loss=0.2).train()
    moe.balance.divisor = 5.0
    x = inputs(2, 13)
    y = moe(x)
    given = gradients(y, x, moe)
    expected_balance, expected_z, chosen = losses(moe, x)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(7))
    total = (naive(moe, x) * weight).sum() + 5 * 0.2 * expected_z
    if balance == "loss":
        total = total + 5 * 0.3 * expected_balance
    for a, b in zip(given, torch.autograd.grad(total, [x, *moe.parameters()]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    expected = torch.cat((chosen, 5 * torch.stack((expected_balance, expected_z))))
    torch.testing.assert_close(moe.balance.tally, expected.detach())


def test_without_training_or_gradient_nothing_is_balanced_or_tallied():
    moe, x = layer(), inputs(2, 5)
    moe(x).sum().backward()
    moe.train()
    with torch.no_grad():
        moe(x)
    assert moe.balance.tally is None


def test_even_experts_have_a_balance_loss_of_one():
    moe = layer(top_k=4)
    assert float(losses(moe, inputs(2, 9))[0].detach()) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["none", "selective", "full"])
def test_a_recomputed_forward_is_neither_balanced_nor_counted_twice(kind):
    model = lively(SHAPE).train()
    balances = Balances(model)
    model.checkpointing = kind
    tokens = random_tokens(2, 16)
    next_token(model, Batch(tokens, tokens, torch.arange(16).expand(2, 16)))[0].backward()
    plain = lively(SHAPE).train()
    next_token(plain, Batch(tokens, tokens, torch.arange(16).expand(2, 16)))[0].backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    sums = torch.zeros(sum(balances.sizes))
    balances.take(sums)
    assert float(sums[:-2].sum()) == 2 * 16 * 2


ROWS = 4


def batches(step: int) -> Batch:
    tokens = random_tokens(ROWS, 17, vocab_size=7, seed=step)
    targets = tokens[:, :-1].clone()
    targets[step % ROWS, : 3 + step % 5] = IGNORE
    return Batch(tokens[:, :-1], targets, torch.arange(16).expand(ROWS, 16))


CONFIG = TrainConfig(
    steps=1, batch_size=ROWS, seq_len=16, lr=1e-2, warmup_steps=0, checkpoint_every=0, precision="fp32"
)


@pytest.mark.parametrize("size", [1, 3, ROWS])
def test_a_step_s_losses_are_means_over_micro_batches_weighted_by_their_valid_tokens(size):
    shape = replace(SHAPE, moe=replace(EXPERTS, balance_coef=0.5, z_loss=0.1))
    model, reference = lively(shape), lively(shape)
    reports = []
    train(model, batches, replace(CONFIG, micro_batch_size=size), on_step=reports.append)
    seen = []
    reference.blocks[1].feed_forward.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = batches(0)
    total, valid = torch.zeros(3), int((batch.targets_BT != IGNORE).sum())
    for start in range(0, ROWS, size):
        micro = Batch(*(part[start : start + size] for part in batch))
        loss, count, _ = next_token(reference, micro)
        balance, z, _ = losses(reference.blocks[1].feed_forward, seen.pop())
        total = total + torch.stack((loss, count * balance, count * z)) / valid
    (report,) = reports
    given = [report.loss, report.extras["moe/layer1/balance_loss"], report.extras["moe/layer1/z_loss"]]
    assert given == pytest.approx(total.tolist(), rel=1e-4)
    (total @ torch.tensor([1, 0.5, 0.1])).backward()
    norm = torch.cat([p.grad.flatten() for p in reference.parameters()]).norm()
    assert report.grad_norm == pytest.approx(float(norm), rel=1e-4)


def test_a_step_reports_the_load_of_every_expert():
    model, reports = lively(SHAPE), []
    with torch.no_grad():  # a router that always says 2 and 0
        model.blocks[1].ff_norm.weight.fill_(1)
        model.blocks[1].feed_forward.router.weight.zero_()
        model.blocks[1].feed_forward.balance.register_buffer("bias", torch.tensor([3.0, 1.0, 4.0, 0.0]))
    train(model, batches, replace(CONFIG, micro_batch_size=2), on_step=reports.append)
    given = reports[0].extras
    assert [given[f"moe/layer1/expert{e}"] for e in range(4)] == [0.5, 0, 0.5, 0]
    assert given["moe/layer1/max_over_mean"] == 2 and given["moe/layer1/variation"] == 1
    assert given["moe/layer1/starved"] == 2 and given["moe/layer1/balance_loss"] == pytest.approx(1)
    assert not any("layer0" in name for name in given)


def test_the_bias_moves_towards_even_load_and_is_the_same_on_every_rank():
    """Two ranks with half of the rows each, their sums added as the all-reduce does, against one with all rows."""
    shape = replace(SHAPE, moe=replace(EXPERTS, balance="bias", bias_rate=0.25))
    ranks, whole = [lively(shape), lively(shape)], lively(shape)
    batch = batches(0)
    sums = []
    for model, rows in ((ranks[0], slice(0, 2)), (ranks[1], slice(2, 4)), (whole, slice(0, 4))):
        balances = Balances(model.train())
        next_token(model, Batch(*(part[rows] for part in batch)))[0].backward()
        sums.append(torch.zeros(sum(balances.sizes)))
        balances.take(sums[-1])
    assert torch.equal(sums[0][:-2] + sums[1][:-2], sums[2][:-2])
    for model in ranks:
        Balances(model).nudge(sums[0] + sums[1])
    Balances(whole).nudge(sums[2])
    load, bias = sums[2][:-2], whole.blocks[1].feed_forward.balance.bias
    assert torch.equal(bias, 0.25 * torch.sign(load.mean() - load)) and bias.ne(0).any()
    assert all(torch.equal(model.blocks[1].feed_forward.balance.bias, bias) for model in ranks)


def spread(balance: str) -> float:
    """The last of 20 steps' coefficient of variation, from a router that prefers expert 0."""
    shape = replace(SHAPE, moe=replace(EXPERTS, balance=balance, balance_coef=0.2, bias_rate=0.03))
    model = Decoder(shape).init_weights(0)
    reports = []
    with torch.no_grad():
        model.embedding.weight[:, 0] = 0.1
        model.blocks[1].feed_forward.router.weight[:, 0] = torch.tensor([0.5, 0.25, 0, -0.25])
    train(model, batches, replace(CONFIG, steps=20), on_step=reports.append)
    return reports[-1].extras["moe/layer1/variation"]


def test_both_ways_of_balancing_even_out_the_load():
    alone = spread("none")
    assert spread("loss") < 0.7 * alone and spread("bias") < 0.7 * alone


def test_an_interrupted_run_with_biases_equals_one_that_was_not_bit_for_bit(tmp_path):
    shape = replace(SHAPE, moe=replace(EXPERTS, balance="bias", bias_rate=0.05))
    config = replace(CONFIG, steps=4, optimizer="muon")
    whole, cut, resumed = (lively(shape) for _ in range(3))
    train(whole, batches, config)
    train(cut, batches, config, on_step=lambda r: r.step == 2, save=lambda step, write: write(tmp_path))
    train(resumed, batches, config, resume=tmp_path)
    held, expected = resumed.state_dict(), whole.state_dict()
    assert expected["blocks.1.feed_forward.balance.bias"].ne(0).any()
    assert all(torch.equal(held[name], expected[name]) for name in expected)


def test_autocast_leaves_the_router_in_fp32():
    moe, x = layer(n_shared=1), inputs(2, 40)
    expected = moe(x)
    weights, plan = moe.route(x.flatten(0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        given = moe(x)
        weights_bf16, plan_bf16 = moe.route(x.flatten(0, 1))
    assert torch.equal(weights, weights_bf16) and torch.equal(plan.slot_NK, plan_bf16.slot_NK)
    assert given.dtype == torch.bfloat16
    torch.testing.assert_close(given.float(), expected, atol=0.02 * float(expected.detach().abs().max()), rtol=0.05)
    given.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in moe.parameters())


def test_muon_sees_each_expert_as_a_matrix_and_leaves_the_router_to_adamw():
    model = lively(SHAPE)
    muon, adamw = make_optimizers(model, replace(CONFIG, optimizer="muon"))
    moe = model.blocks[1].feed_forward
    held = {id(p) for group in muon.param_groups for p in group["params"]}
    assert {id(moe.gate), id(moe.up), id(moe.down)} <= held
    decayed = [p for group in adamw.param_groups if group["weight_decay"] for p in group["params"]]
    assert any(p is moe.router.weight for p in decayed)

    stack = torch.nn.Parameter(moe.up.detach().clone())
    single = [torch.nn.Parameter(w.clone()) for w in stack.detach()]
    stack.grad = torch.randn(stack.shape, generator=torch.Generator().manual_seed(0))
    for w, grad in zip(single, stack.grad, strict=True):
        w.grad = grad.clone()
    Muon([(stack, None)], lr=0.1).step()
    Muon([(w, None) for w in single], lr=0.1).step()
    torch.testing.assert_close(stack.detach(), torch.stack([w.detach() for w in single]))


def test_mixtral_8x7b_has_its_total_and_active_parameters():
    shape = ModelConfig(
        32_000,
        4096,
        32,
        32,
        n_kv_heads=8,
        tie_embeddings=False,
        ff_pattern=("moe",),
        moe=MoeConfig(n_experts=8, top_k=2, d_ff=14_336),
    )
    given = parameters(shape)
    assert (given.total, given.active) == (46_702_792_704, 12_879_925_248)


def test_a_model_without_experts_is_all_active():
    given = parameters(replace(SHAPE, ff_pattern=("dense",)))
    assert given.active == given.total


def test_widths_that_torch_s_grouped_product_refuses_are_refused_in_words():
    with pytest.raises(ValueError, match="experts' width = 20 must be multiples of 8"):
        layer(d_ff=20)
