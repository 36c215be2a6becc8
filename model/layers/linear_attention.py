"""Gated linear attention (GLA): Yang et al. 2023, arXiv 2312.06635, sections 4.1 to 4.4. Per head, with a state S:

    S_t = diag(alpha_t) S_t-1 + k_t^T v_t        alpha_t = sigmoid(x_t W_1 W_2 + b)^(1/16), one for each channel of k
    o_t = q_t S_t / sqrt(D_k)                    y_t = (RMSNorm(o_t) * silu(x_t W_r)) W_o

Training takes chunks of C tokens (section 4.2). With b_t = sum of log alpha from the chunk's first token to t,

    Q = q exp(b),   K = k exp(-b):    O = tril(Q K^T) V + Q S_in,    S_out = exp(b_C) (S_in + K^T V)

are dense products, and only S passes from chunk to chunk, by `linear_scan`. Channels may forget at rates of their own,
as in the paper, since this is safe in fp32: log alpha is at least FLOOR = -2 (no trained gate comes near it: it means
sigmoid(z) < exp(-32)), so that exp(-b) is at most exp(64) in a chunk of 32. The paper's second level of chunks is for
tensor cores, which want bf16. Nothing here is measured from a token that comes later, so no later token changes a bit.

Shapes: B rows, T tokens, H heads, K and V channels of a head's keys and values, N chunks, C tokens of a chunk. A head's
values are of the model's head size, its keys half of it, as in the paper: as many weights as attention. There are no
grouped heads (`n_kv_heads`), and no RoPE: the decay says what is recent.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.init import linear_
from model.kernels.scan import linear_scan
from model.layers.norm import rms_norm
from model.roles import Role
from model.segments import Segments, by_document, first
from model.state import Fixed

GATE_RANK = 16
TEMPERATURE = 16.0  # tau of section 4.4: gates start near 1
FLOOR = -2.0  # of log alpha


@dataclass
class LinearState(Fixed):
    S_BHKV: Tensor  # float32


class LinearAttention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.n_heads, self.chunk = config.n_heads, config.linear_attention.chunk
        self.v_dim, self.k_dim = config.head_dim, max(1, config.head_dim // 2)
        k, v = self.n_heads * self.k_dim, self.n_heads * self.v_dim
        self.sizes = (k, k, v, v)
        qkv_bias = config.has_qkv_bias
        out_bias = config.has_out_bias
        self.qkvr = nn.Linear(config.d_model, sum(self.sizes), bias=qkv_bias)
        self.gate_down = nn.Linear(config.d_model, GATE_RANK, bias=False)
        self.gate_up = nn.Linear(GATE_RANK, k, bias=True)
        self.init_std = config.init_std
        self.norm = rms_norm(config, self.v_dim)
        self.out = nn.Linear(v, config.d_model, bias=out_bias)

    def forward(
        self, x_BTD: Tensor, segments: Segments, state: LinearState | None = None
    ) -> tuple[Tensor, LinearState | None]:
        qkvr, z_BTK = self.qkvr(x_BTD), self.gate_up(self.gate_down(x_BTD))
        qkv, r_BTV = qkvr.split((sum(self.sizes[:3]), self.sizes[3]), -1)
        with torch.autocast(x_BTD.device.type, enabled=False):
            if state is None:
                o_BTV = by_document(lambda qkv, z, _: self._mix(qkv, z, None)[0], segments, qkv, z_BTK)
            else:
                o_BTV = self._continue(qkv, z_BTK, segments.real_BT, state)
                T = x_BTD.shape[1]
                state.absorbed(T, segments.lengths_B, lambda n_B: self._continue(qkv, z_BTK, first(n_B, T), state))
        o = self.norm(o_BTV.unflatten(-1, (self.n_heads, self.v_dim))).flatten(-2).to(r_BTV.dtype)
        return self.out(o * F.silu(r_BTV)), state

    def _continue(self, qkv_BTE: Tensor, z_BTK: Tensor, real_BT: Tensor | None, state: LinearState) -> Tensor:
        o_BTV, state.S_BHKV = self._mix(qkv_BTE, z_BTK, state.S_BHKV, real_BT)
        return o_BTV

    def _mix(
        self, qkv_BTE: Tensor, z_BTK: Tensor, S_BHKV: Tensor | None, real_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rows of one document each, that go on from the state S: (o (B, T, H*V), S after them), float32."""
        q, k, v = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2).float() for part in qkv_BTE.split(self.sizes[:3], -1)
        )
        g = (F.logsigmoid(z_BTK.float()) / TEMPERATURE).clamp(min=FLOOR)
        if real_BT is not None:  # a pad leaves the state as it is
            g = torch.where(real_BT[..., None], g, 0.0)
            k = torch.where(real_BT[:, None, :, None], k, 0.0)
        g = g.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        q = q * self.k_dim**-0.5
        if S_BHKV is not None and q.shape[2] == 1:
            o_BHTV, S = step(q, k, v, g, S_BHKV)
        else:
            o_BHTV, S = chunked(q, k, v, g, S_BHKV, self.chunk)
        return o_BHTV.transpose(1, 2).flatten(2), S

    def new_state(self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype) -> LinearState:
        return LinearState(torch.zeros(batch, self.n_heads, self.k_dim, self.v_dim, device=device))

    def init_weights(self, generator: torch.Generator, std: float, output_std: float) -> None:
        linear_(self.qkvr, std, generator)
        linear_(self.gate_down, std, generator)
        linear_(self.gate_up, self.init_std, generator)  # its fan-in is the same at every width (mup.py)
        linear_(self.out, output_std, generator)
        self.norm.init_weights()

    def flops_per_token(self, span_N: Tensor) -> float:
        """Forward FLOPs of a chunk's four products by its tokens, however many keys (`span_N`) a token could see."""
        return self.n_heads * (2 * self.chunk * (self.k_dim + self.v_dim) + 4 * self.k_dim * self.v_dim)

    def parameter_roles(self) -> dict[str, Role]:
        return {"qkvr.weight": Role("matrix", rows=self.sizes), "gate_up.weight": Role("matrix", narrow=True)}


def step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """One token, (B, H, 1, ·), after the state S: the recurrence as it is written."""
    S = g.exp().transpose(2, 3) * S + k.transpose(2, 3) * v
    return q @ S, S


def chunked(q: Tensor, k: Tensor, v: Tensor, g: Tensor, S: Tensor | None, chunk: int) -> tuple[Tensor, Tensor]:
    """T tokens, (B, H, T, ·), after the state S, by chunks of at most `chunk`; g = log alpha."""
    T = q.shape[2]
    N = -(-T // chunk)
    C = -(-T // N)  # chunks of one length need the least padding; a pad has g = 0 and k = 0
    q, k, v, g = (F.pad(x, (0, 0, 0, N * C - T)).unflatten(2, (N, C)) for x in (q, k, v, g))
    b = g.cumsum(3)
    Q, K_T = q * b.exp(), (k * (-b).exp()).transpose(3, 4)
    later = torch.ones(C, C, dtype=torch.bool, device=q.device).triu(1)
    scores = (Q @ K_T).masked_fill(later, 0.0)
    decay = b[:, :, :, -1, :, None].exp()
    added = decay * (K_T @ v)
    S = torch.zeros_like(added[:, :, 0]) if S is None else S
    added[:, :, 0] += decay[:, :, 0] * S
    after = linear_scan(decay.flatten(0, 1), added.flatten(0, 1)).view_as(added)
    before = torch.cat((S[:, :, None], after[:, :, :-1]), 2)
    return (scores @ v + Q @ before).flatten(2, 3)[:, :, :T], after[:, :, -1].clone()  # a view would keep all of them
