"""Exact counts of parameters and FLOPs, on the meta device: nothing is allocated (bytes: memory.py).

FLOPs of a matrix product of (a, b) by (b, c) are 2abc. A training step costs three times the forward (the gradient of
the input and of the weight); recomputation under activation checkpointing is not model FLOPs and is not counted.
Attention's scores are counted over the keys that each query really sees: in a document of T tokens (T + 1) / 2 on
average under a causal mask, else T, and as many as its window reaches.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model.config import ModelConfig
from model.decoder import Block, Decoder
from model.errors import UserError
from model.layers.moe import MoE
from model.objectives.next_token import IGNORE
from model.segments import Segments


@dataclass(frozen=True)
class Parameters:
    total: int
    active: int  # without the experts that a token isn't sent to
    embedding: int  # token and position embeddings, and the head if it is not tied
    matrices: int  # weights that each token is multiplied by, the head included (tied or not)


def meta_model(config: ModelConfig) -> Decoder:
    """The decoder without memory behind its weights. Raises UserError for sizes that no tensor can have."""
    try:
        with torch.device("meta"):
            return Decoder(config)
    except (RuntimeError, OverflowError, TypeError) as error:  # numbers beyond 64 bits
        said = str(error).splitlines()[0][:200]
        raise UserError(f"no model has weights of such sizes ({said})") from error


def parameters(config: ModelConfig) -> Parameters:
    model = meta_model(config)
    total = sum(p.numel() for p in model.parameters())
    roles = model.parameter_roles()
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    embedding = sum(n for name, n in sizes.items() if roles[name].kind in ("embedding", "head"))
    experts = [m for m in model.modules() if isinstance(m, MoE)]
    idle = sum((m.n_experts - m.top_k) * m.expert_size for m in experts)
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    linear += sum(m.top_k * m.expert_size for m in experts)
    head = config.vocab_size * config.d_model if config.tie_embeddings else 0
    return Parameters(total, total - idle, embedding, linear + head)


def flops_per_token(config: ModelConfig, seq_len: int, *, train: bool = True, span: float | None = None) -> float:
    """Mean FLOPs of a token of rows of `seq_len`, of one document each; `span`: of one that could see so many keys."""
    if span is not None:
        span_N = torch.tensor([span], dtype=torch.float64)
    elif config.causal:
        span_N = torch.arange(1, seq_len + 1, dtype=torch.float64)
    else:
        span_N = torch.tensor([seq_len], dtype=torch.float64)
    model = meta_model(config)
    forward = 2.0 * parameters(config).matrices
    forward += sum(block.mixer.flops_per_token(span_N) for block in model.modules() if isinstance(block, Block))
    return forward * 3 if train else forward


class StepFlops:
    """FLOPs of a training step on a real batch.

    Each query sees its position + 1 keys, or all of its document's, and only tokens with a target reach the head.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.causal = config.causal
        self.mixers = [block.mixer for block in meta_model(config).modules() if isinstance(block, Block)]
        self.head = 2.0 * config.vocab_size * config.d_model
        self.matrices = 2.0 * parameters(config).matrices - self.head

    def __call__(self, batch: Any, n_valid: int) -> float:
        """`batch` as an objective gets it, tokens first.

        Its `positions_BT` and `targets_BT`, if it has them, tell the spans and the tokens with a target, else rows are
        one document each, and `n_valid` tokens have one.
        """
        tokens = batch[0].numel()
        positions, targets = getattr(batch, "positions_BT", None), getattr(batch, "targets_BT", None)
        if positions is None:
            positions = torch.arange(batch[0].shape[-1]).expand(batch[0].shape)
        span_N = (positions.double() + 1).flatten().cpu()
        if not self.causal:
            lengths = Segments.from_positions(positions.flatten(0, -2)).bounds_N.diff()
            span_N = lengths.repeat_interleave(lengths).double().cpu()
        predicted = n_valid if targets is None else int((targets != IGNORE).sum())
        mixing = sum(mixer.flops_per_token(span_N) for mixer in self.mixers)
        return 3 * (tokens * (self.matrices + mixing) + predicted * self.head)
