"""Estimated bytes against what autograd saves and against what torch's allocator hands out."""

from dataclasses import replace

import pytest
import torch
from small_models import SHAPES, lively, random_tokens
from torch.profiler import ProfilerActivity, profile

from model.config import ModelConfig
from model.count import parameters
from model.decoder import Decoder
from model.memory import memory, state_bytes
from model.objectives.next_token import Batch, next_token
from model.presets import preset

ROWS, LENGTH = 8, 64
KINDS = ("none", "selective", "full")
ALLOCATED = ("llama", "gpt2", "relu2-no-positions", "window-gqa-global", "mamba2-hybrid", "h3", "moe-shared")


def larger(config: ModelConfig) -> ModelConfig:
    """Wide and deep enough that a block's activations outweigh its weights."""
    return replace(config, d_model=64, n_layers=4, d_head=16, max_seq_len=LENGTH, mup_base_width=None)


def measured_peak(model: Decoder) -> int:
    """Bytes that a forward and backward pass hold at once, by the allocator's own record."""
    tokens = random_tokens(ROWS, LENGTH)
    batch = Batch(tokens, tokens, torch.arange(LENGTH).expand(ROWS, LENGTH))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        next_token(model, batch)[0].backward()
    held = peak = 0
    for event in sorted(record.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ALLOCATED)
def test_estimated_activations_are_near_what_a_step_allocates(name, kind):
    """To a quarter."""
    shape = larger(SHAPES[name])
    model = lively(shape).train()
    model.checkpointing = kind
    assert memory(shape, ROWS, LENGTH, checkpointing=kind).activations == pytest.approx(measured_peak(model), rel=0.25)


def test_estimated_activations_are_what_autograd_saves(config):
    shape = larger(config)
    model = lively(shape).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(random_tokens(ROWS, LENGTH))
    saved = sum(t.untyped_storage().nbytes() for t in kept.values())
    ends = 2 * ROWS * LENGTH * 64 * 4 + 2 * ROWS * LENGTH * 97 * 4 + 97 * 64 * 4  # the loss's, and what it is given
    assert memory(shape, ROWS, LENGTH).activations - ends == pytest.approx(saved, rel=0.1)


def test_each_kind_keeps_less_than_the_one_before():
    shape = ModelConfig(vocab_size=97, d_model=64, n_layers=8, n_heads=4)
    none, selective, full = (memory(shape, ROWS, LENGTH, checkpointing=kind).activations for kind in KINDS)
    assert none > 1.3 * selective and selective > 1.5 * full
    assert none > 2 * full


def test_muon_keeps_one_moment_for_matrices():
    shape = SHAPES["llama"]
    adamw, muon = (memory(shape, 1, 16, optimizer=o).optimizer for o in ("adamw", "muon"))
    matrices = parameters(shape).matrices - 97 * 32
    assert adamw - muon == 4 * matrices


def test_seventy_billion_parameters_are_estimated_without_allocating():
    shape = ModelConfig(128_256, max_seq_len=8192, **preset("70B"))
    total = parameters(shape).total
    none, full = (memory(shape, 1, 8192, checkpointing=kind, dtype=torch.bfloat16) for kind in ("none", "full"))
    assert none.weights == none.gradients == 4 * total > 280e9 and none.optimizer == 8 * total
    inputs = 82 * 8192 * 8192 * 2  # of 82 blocks, 8192 tokens of width 8192 in bf16
    assert inputs < full.activations < none.activations / 4


def test_a_state_s_bytes_are_those_of_its_tensors():
    shape = replace(SHAPES["gqa-qk-norm"], max_seq_len=64)
    assert state_bytes(shape, 3, 20) == 2 * 2 * 3 * 2 * 20 * 8 * 4  # layers, k and v, rows, heads, length, size, fp32
