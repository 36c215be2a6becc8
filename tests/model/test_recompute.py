"""What activation checkpointing makes again, and what it doesn't. That gradients are the same: test_decoder.py."""

import subprocess
import sys

import pytest
import torch
from small_models import SHAPES, lively, random_tokens
from torch.utils.checkpoint import CheckpointPolicy
from torch.utils.flop_counter import FlopCounterMode

from model import recompute
from model.kernels import blocked
from model.objectives.next_token import Batch, next_token
from model.recompute import KEPT
from model.train_config import Checkpointing


def forward(shape: str) -> int:
    """FLOPs of the blocks' forward pass, by torch."""
    with FlopCounterMode(display=False) as counter:
        lively(SHAPES[shape])(random_tokens(2, 16))
    return counter.get_total_flops()


def products(shape: str, kind: Checkpointing) -> int:
    """FLOPs of a forward and backward pass, by torch."""
    model = lively(SHAPES[shape])
    model.checkpointing = kind
    tokens = random_tokens(2, 16)
    with FlopCounterMode(display=False) as counter:
        next_token(model, Batch(tokens, tokens, torch.arange(16).expand(2, 16)))[0].backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("shape", ["llama", "gqa-qk-norm", "gpt2"])
def test_selective_repeats_no_product_with_weights_and_no_attention(shape):
    none, selective, full = (products(shape, kind) for kind in ("none", "selective", "full"))
    assert selective == none
    config = SHAPES[shape]
    last = (
        config.n_layers * 2 * 32 * config.ff_width * config.d_model
    )  # a block's last product, whose result nobody needs
    assert full == none + forward(shape) - last


@pytest.mark.parametrize("kind", ["selective", "full"])
@pytest.mark.parametrize("shape", ["llama", "gqa-qk-norm", "gpt2"])
def test_gradients_are_the_same_under_autocast(shape, kind):
    model = lively(SHAPES[shape])
    batch = Batch(random_tokens(2, 16), random_tokens(2, 16, seed=1), torch.arange(16).expand(2, 16))
    gradients = []
    for checkpointing in ("none", kind):
        model.checkpointing = checkpointing
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = next_token(model, batch)[0] + next_token(model, batch)[0]  # the second finds the weights cast
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_generation_recomputes_nothing():
    model = lively(SHAPES["llama"])
    plain, _ = model(random_tokens(1, 5), state=model.new_state(1, 8))
    model.checkpointing = "selective"
    given, _ = model(random_tokens(1, 5), state=model.new_state(1, 8))
    assert torch.equal(plain, given)


def test_selective_keeps_the_other_kernels_of_attention_too():
    from torch.nn.attention import varlen as of_torch

    assert of_torch.varlen_attn is not None and blocked.KERNEL in KEPT
    documents = torch.ops.torch_attn._varlen_attn.default
    assert recompute._policy(None, documents) == recompute._policy(None, blocked.KERNEL) == CheckpointPolicy.MUST_SAVE
    assert recompute._policy(None, torch.ops.aten.relu.default) == CheckpointPolicy.PREFER_RECOMPUTE


def test_the_kernel_for_documents_is_imported_where_it_is_used():
    code = (
        "import sys, model.decoder, model.recompute; from model.kernels import varlen; "
        "print('torch._dynamo' in sys.modules, varlen.available(), 'torch._dynamo' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8").stdout
        == "False True False\n"
    )
