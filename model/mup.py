"""muP: learning rates that stay right when the width changes; Yang et al. 2022, arXiv 2203.03466, table 8.

With `mup_base_width` = n the hyperparameters are those of width n, and a model of width D = n / r, r = n / D, has

                          initial std        AdamW's lr    Muon's lr     multiplier
    embeddings, vectors   as given           lr            lr            1
    hidden matrices       std * sqrt(r)      lr * r        lr * sqrt(r)  1
    head, tied or not     as given           lr            lr            logits * r
    attention             -                  -             -             scores * sqrt(base head size / head size)

so that at D = n nothing is changed, bit for bit. Every width is taken to grow in proportion to `d_model` (fan-in,
`d_ff`, experts, channels of scans), head by head or with the head's size: then give `mup_base_d_head`.

- Table 8 is the form of muP in which the output's variance doesn't depend on width: the one that lets embedding and
  head be one tensor. Tied, that tensor has the input's and the output's rule at once, since they are equal.
- Matrices into few outputs (a router's experts, a scan's B, C and step sizes) are treated as hidden ones: the same
  learning rate as table 8's output weights, and an initial output of order 1, not 1 / sqrt(D).
- Experts are hidden matrices. The fan-in of convolutions, decays, gates per head and out of a low rank (`Role.narrow`)
  doesn't grow: their learning rate and initial std are those of vectors.
- Muon's update of an m x n matrix is scaled by sqrt(max(m, n)), to AdamW's size (optim/muon.py), so its spectral norm
  grows as sqrt(D); it must stay at sqrt(m / n) (Yang, Simon & Bernstein 2023, arXiv 2310.17813): hence sqrt(r).
- Weight decay is divided by the group's factor: lr * decay is what decays, and doesn't depend on width (independent
  weight decay; Wortsman et al. 2023, arXiv 2309.14322).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from model.train_config import Optimizer

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.roles import Role


def ratio(config: ModelConfig) -> float:
    """r = base width / width; 1 without muP."""
    return 1.0 if config.mup_base_width is None else config.mup_base_width / config.d_model


def hidden_std(config: ModelConfig) -> float:
    """Initial standard deviation of hidden matrices."""
    return config.init_std * math.sqrt(ratio(config))


def output_scale(config: ModelConfig) -> float:
    """What the last hidden states are multiplied by on their way to the head."""
    return ratio(config)


def attention_scale(config: ModelConfig) -> float | None:
    """What a query's product with a key is multiplied by; None: the usual 1 / sqrt(head size)."""
    base = config.head_dim if config.mup_base_d_head is None else config.mup_base_d_head
    if config.mup_base_width is None or base == config.head_dim:
        return config.attention_scale
    scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
    return scale * math.sqrt(base / config.head_dim)


def lr_scale(config: ModelConfig, role: Role, optimizer: Optimizer) -> float:
    """What the learning rate of a parameter is multiplied by under `optimizer`."""
    if role.kind not in ("matrix", "router") or role.narrow:
        return 1.0
    return math.sqrt(ratio(config)) if optimizer == "muon" else ratio(config)
