"""Counters against tensors and torch's own FLOP counter."""

import pytest
import torch
from small_models import SHAPES, SMALL, TWO_WAY, lively, random_tokens
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.count import StepFlops, flops_per_token, parameters
from model.decoder import Decoder
from model.objectives.next_token import IGNORE, Batch, next_token

# torch's counter knows addmm but not its in-place form, nor the grouped product of a mixture of experts.
UNKNOWN = {
    torch.ops.aten.addmm_: lambda c, a, b, out_shape=None, **_: 2 * a[0] * a[1] * b[1],
    torch.ops.aten._grouped_mm: lambda a, b, *_, out_shape=None, **__: 2 * a[0] * a[1] * b[-1],
}
PRODUCTS = ("aten.mm", "aten.addmm", "aten.addmm_", "aten.bmm", "aten._grouped_mm")


def test_parameters_are_those_of_the_tensors(config):
    given = parameters(config)
    model = Decoder(config)
    assert given.total == sum(p.numel() for p in model.parameters())
    embeddings = [model.embedding, model.positions, model.head]
    assert given.embedding == sum(e.weight.numel() for e in embeddings if e is not None)


def counted(model, backward: bool) -> tuple[float, float]:
    """(FLOPs of matrix products, FLOPs of attention over all T keys) per token, by torch."""
    tokens = random_tokens(2, 16)
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN) as counter:
        loss, _, _ = next_token(model, Batch(tokens, tokens, torch.arange(16).expand(2, 16)))
        if backward:
            loss.backward()
    by_op = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in by_op.items() if str(op) in PRODUCTS)
    assert products + sum(n for op, n in by_op.items() if "scaled_dot_product" in str(op)) == sum(by_op.values())
    return products / 32, sum(by_op.values()) / 32 - products / 32


# Scans multiply elementwise too, and by chunks, which torch doesn't count: their own tests hold them to their products.
PRODUCTS_ALONE = {"attention", "window", "linear_attention"}
COUNTED = {name: c for name, c in (SHAPES | TWO_WAY).items() if PRODUCTS_ALONE.issuperset(c.layer_mixers)}
by_shape = pytest.mark.parametrize("config", COUNTED.values(), ids=COUNTED.keys())


@by_shape
def test_forward_flops_are_torch_s(config):
    with torch.no_grad():
        products, _ = counted(lively(config), backward=False)
    assert flops_per_token(config, 16, train=False, span=0) == products


@by_shape
def test_training_flops_are_torch_s(config):
    products, _ = counted(lively(config), backward=True)
    assert flops_per_token(config, 16, span=0) == products


def test_attention_flops_are_those_of_scores_and_values():
    """4 * width * keys per query and layer, over the (T + 1) / 2 keys that a causal query sees."""
    shape = SHAPES["llama"]
    without = flops_per_token(shape, 16, train=False, span=0)
    assert flops_per_token(shape, 16, train=False) - without == 4 * 32 * 8.5 * 2


def test_seventy_billion_parameters_are_counted_without_allocating():
    shape = ModelConfig(128_256, 8192, 80, 64, n_kv_heads=8, d_ff=28_672, tie_embeddings=False)
    assert parameters(shape).total == 70_553_706_496  # Llama 3 70B


def test_a_step_that_looks_both_ways_counts_whole_documents_and_tokens_with_a_target():
    config = ModelConfig(**SMALL, causal=False)
    positions = torch.cat((torch.arange(5), torch.arange(27)))[None]
    tokens, targets = random_tokens(1, 32), torch.full((1, 32), IGNORE)
    targets[0, 3:10] = 1
    seen = (5 * 5 + 27 * 27) / 32  # keys of a query, on average
    head = 3 * 2 * config.vocab_size * config.d_model
    expected = 32 * (flops_per_token(config, 32, span=seen) - head) + 7 * head
    assert abs(StepFlops(config)(Batch(tokens, targets, positions), 31) / expected - 1) < 1e-6
    assert flops_per_token(config, 32) == flops_per_token(config, 32, span=32)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("window", "global_tokens"), [(1, 0), (5, 0), (4, 6), (8, 2), (30, 3), (64, 1)])
def test_windows_count_the_pairs_that_their_mask_lets_through(window, global_tokens, causal):
    """Longformer's rule, pair by pair, over packed documents and over whole rows."""
    sizes = {"pattern": ("window",), "window": window, "global_tokens": global_tokens, "causal": causal}
    config = ModelConfig(**SMALL, **sizes)

    def pairs(length: int) -> int:
        p, j = torch.arange(length)[:, None], torch.arange(length)
        near, wide = (p - j).abs() < window, (j < global_tokens) | (p < global_tokens)
        seen = (near | wide) & (j <= p) if causal else near | wide
        return int(seen.sum())

    per_pair = 4 * 32 * 2
    without = flops_per_token(config, 32, train=False, span=0)
    given = flops_per_token(config, 32, train=False) - without
    assert given == pytest.approx(per_pair * pairs(32) / 32, rel=1e-9)
    positions = torch.cat((torch.arange(9), torch.arange(23)))[None].repeat(2, 1)
    tokens = random_tokens(2, 32)
    step = StepFlops(config)(Batch(tokens, tokens, positions), 64)
    expected = 3 * (64 * without + per_pair * 2 * (pairs(9) + pairs(23)))
    assert step == pytest.approx(expected, rel=1e-9)
