"""Counters against tensors and torch's own FLOP counter."""

from dataclasses import replace

import pytest
import torch
from small_models import SHAPES, lively, random_tokens
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.count import flops_per_token, memory, parameters
from model.decoder import Decoder
from model.objectives.next_token import Batch, next_token

# torch's counter knows addmm but not its in-place form.
IN_PLACE = {torch.ops.aten.addmm_: lambda c, a, b, out_shape=None, **_: 2 * a[0] * a[1] * b[1]}


def test_parameters_are_those_of_the_tensors(config):
    given = parameters(config)
    model = Decoder(config)
    assert given.total == sum(p.numel() for p in model.parameters())
    embeddings = [model.embedding, model.positions, model.head]
    assert given.embedding == sum(e.weight.numel() for e in embeddings if e is not None)


def counted(model, backward: bool) -> tuple[float, float]:
    """(FLOPs of matrix products, FLOPs of attention over all T keys) per token, by torch."""
    tokens = random_tokens(2, 16)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        loss, _, _ = next_token(model, Batch(tokens, tokens, torch.arange(16).expand(2, 16)))
        if backward:
            loss.backward()
    by_op = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in by_op.items() if str(op) in ("aten.mm", "aten.addmm", "aten.addmm_", "aten.bmm"))
    assert products + sum(n for op, n in by_op.items() if "scaled_dot_product" in str(op)) == sum(by_op.values())
    return products / 32, sum(by_op.values()) / 32 - products / 32


def test_forward_flops_are_torch_s(config):
    with torch.no_grad():
        products, _ = counted(lively(config), backward=False)
    assert flops_per_token(config, 16, train=False, span=0) == products


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
    assert memory(shape, 1, 8192).weights == 4 * 70_553_706_496


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_estimated_activations_are_near_what_autograd_keeps(config, checkpointing):
    wide = replace(config, d_model=64, n_layers=4, d_head=16, max_seq_len=128)
    model = lively(wide)
    model.checkpointing = checkpointing
    own = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = random_tokens(8, 128)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(tokens)
    estimate = memory(wide, 8, 128, checkpointing=checkpointing)
    head = min(8 * 128 * 97, 1 << 22) * 4 + 97 * 64 * 4 + 8 * 128 * 2 * 64 * 4
    if checkpointing == "full":  # one layer is rebuilt at a time, in the backward pass
        assert sum(kept.values()) < estimate.activations - head
    else:
        assert sum(kept.values()) == pytest.approx(estimate.activations - head, rel=0.3)


def test_muon_keeps_one_moment_for_matrices():
    shape = SHAPES["llama"]
    adamw, muon = (memory(shape, 1, 16, optimizer=o).optimizer for o in ("adamw", "muon"))
    matrices = parameters(shape).matrices - 97 * 32
    assert adamw - muon == 4 * matrices
