"""Exact counts of parameters, FLOPs and memory, on the meta device: nothing is allocated.

FLOPs of a matrix product of (a, b) by (b, c) are 2abc. A training step costs three times the forward (the
gradient of the input and of the weight); recomputation under activation checkpointing is not model FLOPs and
is not counted. Attention's scores are counted over the keys that a query really sees: (T + 1) / 2 on average
under a causal mask.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model.config import ModelConfig
from model.decoder import Block, Decoder
from model.train_config import Checkpointing, Optimizer


@dataclass(frozen=True)
class Parameters:
    total: int
    embedding: int  # token and position embeddings, and the head if it is not tied
    matrices: int  # weights that each token is multiplied by, the head included (tied or not)


def meta_model(config: ModelConfig) -> Decoder:
    """The decoder without memory behind its weights."""
    with torch.device("meta"):
        return Decoder(config)


def parameters(config: ModelConfig) -> Parameters:
    model = meta_model(config)
    total = sum(p.numel() for p in model.parameters())
    roles = model.parameter_roles()
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    embedding = sum(n for name, n in sizes.items() if roles[name].kind in ("embedding", "head"))
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    head = config.vocab_size * config.d_model if config.tie_embeddings else 0
    return Parameters(total, embedding, linear + head)


def flops_per_token(config: ModelConfig, seq_len: int, *, train: bool = True, span: float | None = None) -> float:
    """FLOPs of one token of rows of `seq_len`; `span` overrides the mean number of keys a query sees
    ((seq_len + 1) / 2, for rows of one document each)."""
    span = (seq_len + 1) / 2 if span is None else span
    model = meta_model(config)
    forward = 2.0 * parameters(config).matrices
    forward += sum(block.mixer.flops_per_token(span) for block in model.modules() if isinstance(block, Block))
    return forward * 3 if train else forward


class StepFlops:
    """FLOPs of a training step on a real batch: each query sees its position + 1 keys, and only valid targets
    reach the head."""

    def __init__(self, config: ModelConfig) -> None:
        self.mixers = [block.mixer for block in meta_model(config).modules() if isinstance(block, Block)]
        self.head = 2.0 * config.vocab_size * config.d_model
        self.matrices = 2.0 * parameters(config).matrices - self.head

    def __call__(self, batch: Any, n_valid: int) -> float:
        """`batch` as an objective gets it, tokens first; its `positions_BT`, if it has any, give the
        spans.
        """
        tokens = batch[0].numel()
        positions = getattr(batch, "positions_BT", None)
        span = (batch[0].shape[-1] + 1) / 2 if positions is None else float(positions.float().mean()) + 1
        mixing = sum(mixer.flops_per_token(span) for mixer in self.mixers)
        return 3 * (tokens * (self.matrices + mixing) + n_valid * self.head)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device of a training step without sharding."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def memory(
    config: ModelConfig,
    micro_batch_size: int,
    seq_len: int,
    *,
    optimizer: Optimizer = "adamw",
    checkpointing: Checkpointing = "none",
    compute_bytes: int = 4,
) -> Memory:
    """Weights, gradients and moments in fp32 are exact; activations are those that autograd keeps,
    estimated.
    """
    model = meta_model(config)
    roles = model.parameter_roles()
    total = parameters(config).total
    matrix = sum(p.numel() for name, p in model.named_parameters() if roles[name].kind == "matrix")
    moments = 2 * total - (matrix if optimizer == "muon" else 0)
    tokens = micro_batch_size * seq_len
    D, F = config.d_model, config.ff_width
    qkv = (config.n_heads + 2 * config.kv_heads) * config.head_dim
    mixed = config.n_heads * config.head_dim
    # Kept per token and layer: both norms' inputs and outputs; q, k, v (again after RoPE) and the mixture;
    # the feed-forward's hidden layer before and after its activation.
    layer = 4 * D + qkv * (2 if config.position == "rope" else 1) + mixed + F * (4 if config.gated else 2)
    if checkpointing == "full":
        kept = config.n_layers * D + layer
    else:
        kept = config.n_layers * layer
    head = 2 * D
    chunk = min(tokens * config.vocab_size, 1 << 22) * 4 + config.vocab_size * D * 4
    return Memory(4 * total, 4 * total, 4 * moments, tokens * (kept + head) * compute_bytes + chunk)
