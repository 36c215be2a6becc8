"""Mamba-2: state space duality; Dao & Gu 2024, arXiv 2405.21060. For each head, with scalars a_t = exp(dt_t A) < 1:

    h_t = a_t h_{t-1} + dt_t B_t x_t^T        y_t = C_t^T h_t + D x_t                     (the recurrence: generation)
    y = (L * C B^T) (dt x) + D x,             L_ij = a_i … a_{j+1} for i >= j, else 0     (its dual: training)

Training and prefill use the dual within chunks and the recurrence from chunk to chunk (section 6; ssd.py). Around the
scan, as in section 7: one projection to z, x, B, C and dt; a short convolution over x, B and C; a norm of y gated by z,
over each group's channels.

Shapes: B rows, T tokens; H heads of P channels with states of N; G groups of E = H / G heads that share B and C. The
state h_BGNEP has a group's heads side by side: they are one product with B or C. Parameters are laid out as in the
paper's code and in Hugging Face's Mamba2 (in_proj, conv1d, dt_bias, A_log, D, norm, out_proj).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.errors import UserError
from model.init import linear_, uniform_
from model.kernels.ssd import ssd
from model.layers.causal_conv import CausalConv, ConvState
from model.layers.norm import RMSNorm
from model.roles import Role
from model.segments import Segments, by_document, first
from model.state import Fixed

DT_RANGE = (0.001, 0.1)  # at initialisation, log-uniform (the paper's code)
A_RANGE = (1.0, 16.0)  # -A at initialisation, uniform


@dataclass
class Mamba2State(Fixed):
    """What a row remembers, whatever its length: the convolution's last inputs, and h in float32."""

    conv: ConvState
    h_BGNEP: Tensor


class Mamba2(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        m = config.mamba2
        inner = m.expand * config.d_model
        if inner % m.head_dim:
            raise UserError(
                f"mamba2.expand * d_model = {inner} is not a multiple of mamba2.head_dim = {m.head_dim}: change one"
            )
        self.n_heads, self.head_dim = inner // m.head_dim, m.head_dim
        if self.n_heads % m.n_groups:
            raise UserError(
                f"mamba2.n_groups = {m.n_groups} does not divide its {self.n_heads} heads "
                f"(expand * d_model / head_dim): each group serves an equal number of heads"
            )
        self.n_groups, self.d_state, self.chunk = m.n_groups, m.d_state, m.chunk
        shared = m.n_groups * m.d_state
        self.sizes = (inner, inner, shared, shared, self.n_heads)  # z, x, B, C, dt
        self.in_proj = nn.Linear(config.d_model, sum(self.sizes), bias=config.bias)
        self.conv1d = CausalConv(inner + 2 * shared, m.conv_width, m.conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(self.n_heads))
        self.A_log = nn.Parameter(torch.empty(self.n_heads))
        self.D = nn.Parameter(torch.empty(self.n_heads))
        self.norm = GroupedRMSNorm(inner, m.n_groups, config.norm_eps)
        out_bias = config.has_out_bias
        self.out_proj = nn.Linear(inner, config.d_model, bias=out_bias)

    def forward(
        self, x_BTD: Tensor, segments: Segments, state: Mamba2State | None = None
    ) -> tuple[Tensor, Mamba2State | None]:
        inner, _, shared, _, heads = self.sizes
        z, xBC, dt = self.in_proj(x_BTD).split((inner, inner + 2 * shared, heads), -1)
        xBC = F.silu(self.conv1d(xBC, segments, None if state is None else state.conv))
        dt_BTH = F.softplus(dt.float() + self.dt_bias)
        if state is None:
            y = self._train(xBC, dt_BTH, segments)
        else:
            T = x_BTD.shape[1]
            y = self._continue(xBC, dt_BTH, segments.real_BT, state)
            state.absorbed(T, segments.lengths_B, lambda n_B: self._continue(xBC, dt_BTH, first(n_B, T), state))
        return self.out_proj(self.norm(y * F.silu(z))), state

    def _continue(self, xBC: Tensor, dt_BTH: Tensor, real_BT: Tensor | None, state: Mamba2State) -> Tensor:
        if real_BT is not None:
            dt_BTH = dt_BTH * real_BT[..., None]  # no time passes at a pad: it leaves h as it is
        y, state.h_BGNEP = self._scan(xBC, dt_BTH, state.h_BGNEP)
        return y

    def _train(self, xBC: Tensor, dt_BTH: Tensor, segments: Segments) -> Tensor:
        kernel = fused_scan() if xBC.is_cuda else None
        if kernel is None:
            return by_document(lambda xBC, dt_BTH, _: self._scan(xBC, dt_BTH)[0], segments, xBC, dt_BTH)
        x, B, C = self._split(xBC)
        documents_BT = (segments.starts_BT.cumsum(1) - 1).int()
        A = -self.A_log.float().exp()
        return kernel(x, dt_BTH, A, B, C, chunk_size=self.chunk, D=self.D, seq_idx=documents_BT).flatten(2)

    def _scan(self, xBC: Tensor, dt_BTH: Tensor, h_BGNEP: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y (B, T, H * P) of rows of one document that go on from h, and the last h in float32."""
        x, B, C = self._split(xBC)
        heads = (self.n_groups, -1)
        dtx = (x * dt_BTH[..., None]).unflatten(2, heads)
        dtA = (dt_BTH * -self.A_log.float().exp()).unflatten(2, heads)
        if h_BGNEP is not None and x.shape[1] == 1:
            y, h = _step(dtx, dtA, B, C, h_BGNEP)
        else:
            y, h = ssd(dtx, dtA, B, C, self.chunk, h_BGNEP)
        return torch.addcmul(y.flatten(2, 3), x, self.D[:, None]).flatten(2).to(xBC.dtype), h

    def _split(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, H, P), B and C (B, T, G, N)."""
        inner, _, shared = self.sizes[:3]
        x, B, C = xBC.split((inner, shared, shared), -1)
        groups = (self.n_groups, self.d_state)
        return x.unflatten(-1, (-1, self.head_dim)), B.unflatten(-1, groups), C.unflatten(-1, groups)

    def new_state(self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype) -> Mamba2State:
        heads = (self.n_groups, self.d_state, self.n_heads // self.n_groups, self.head_dim)
        h = torch.zeros(batch, *heads, device=device, dtype=torch.float32)
        return Mamba2State(self.conv1d.new_state(batch, device, dtype), h)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, std: float, output_std: float) -> None:
        linear_(self.in_proj, std, generator)
        linear_(self.out_proj, output_std, generator)
        self.conv1d.init_weights(generator)
        uniform_(self.dt_bias, math.log(DT_RANGE[0]), math.log(DT_RANGE[1]), generator)
        dt = self.dt_bias.exp()
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus's inverse
        uniform_(self.A_log, *A_RANGE, generator)
        self.A_log.log_()
        nn.init.ones_(self.D)
        self.norm.init_weights()

    def flops_per_token(self, span_N: Tensor) -> float:
        """The convolution; C B^T and its product with x over the keys of a token's chunk; into and out of the state."""
        seen = min(float(span_N.mean()), (self.chunk + 1) / 2)
        inner, _, shared = self.sizes[:3]
        return self.conv1d.flops_per_token + 2 * seen * (shared + inner) + 4 * self.d_state * inner

    def parameter_roles(self) -> dict[str, Role]:
        return {"in_proj.weight": Role("matrix", rows=self.sizes)}


class GroupedRMSNorm(RMSNorm):
    """RMSNorm over each of G groups of neighbouring channels; one weight a channel."""

    def __init__(self, width: int, groups: int, eps: float) -> None:
        super().__init__(width, eps)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return super().forward(x)
        grouped = x.unflatten(-1, (self.groups, -1))
        return F.rms_norm(grouped, grouped.shape[-1:], eps=self.eps).flatten(-2) * self.weight.to(x.dtype)


def _step(x: Tensor, a: Tensor, B: Tensor, C: Tensor, h_BGNEP: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence for one token; arguments and results as `ssd`'s."""
    added = B[:, 0, :, :, None, None] * x[:, 0, :, None]
    h = torch.addcmul(added, h_BGNEP, a[:, 0, :, None, :, None].exp())
    y = C[:, 0, :, None].float() @ h.flatten(3)
    return y.view(x.shape), h


@cache
def fused_scan() -> Callable[..., Tensor] | None:
    """mamba_ssm's Triton kernel for the same scan, if that package is installed; used in training on CUDA.

    Never run by this project's tests: they have no GPU.
    """
    try:
        return import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    except ImportError:
        return None
