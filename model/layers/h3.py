"""H3, Hungry Hungry Hippos; Fu et al. 2022, arXiv 2212.14052, section 3 and algorithm 1. For each head:

    o_t = q_t^T  SSM_diag( SSM_shift(k) v^T )_t          a gate, a memory of what stood together, a gate

SSM_shift is a convolution over the latest `shift` inputs; SSM_diag has one real diagonal state of N for a whole head:

    h_t = lambda h_{t-1} + u_t,   y_t = c^T h_t + D u_t,      lambda = exp(dt A),  c = C (lambda - 1) / A

which is zero-order hold with B = 1, and A_n = -(n + 1) at first (S4D-Real; Gu et al. 2022, arXiv 2206.11893). The paper
convolves by FFT. That lets the rounding of later tokens into earlier ones and has no state to continue, so here y is
made in chunks of L tokens, linear in T and exactly causal: K(i - j) = c^T lambda^(i-j) as an L x L product within a
chunk, and the recurrence, L tokens a step, from chunk to chunk.

Shapes: B rows, T tokens; H heads of P channels; X = P P entries of k v^T; states of N; K chunks of L tokens; M = B K X.
All of SSM_diag's parameters and states are float32.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.errors import UserError
from model.init import linear_, normal_, uniform_
from model.kernels.scan import linear_scan
from model.layers.causal_conv import CausalConv, ConvState
from model.roles import Role
from model.segments import Segments, by_document
from model.state import Fixed

DT_RANGE = (0.001, 0.1)  # at initialisation, log-uniform (S4D, section 4.4)


@dataclass
class H3State(Fixed):
    """What a row remembers, whatever its length: the shift's last inputs, and SSM_diag's h in float32."""

    shift: ConvState
    h_BHXN: Tensor


class H3(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.head_dim, D = config.h3.head_dim, config.d_model
        if D % self.head_dim:
            raise UserError(f"h3.head_dim = {self.head_dim} does not divide d_model = {D}: change one")
        in_bias = config.has_qkv_bias
        out_bias = config.has_out_bias
        self.q = nn.Linear(D, D, bias=in_bias)
        self.k = nn.Linear(D, D, bias=in_bias)
        self.v = nn.Linear(D, D, bias=in_bias)
        self.shift = CausalConv(D, config.h3.shift, bias=False)
        self.diagonal = DiagonalSSM(D // self.head_dim, config.h3.d_state, config.h3.chunk)
        self.out = nn.Linear(D, D, bias=out_bias)

    def forward(self, x_BTD: Tensor, segments: Segments, state: H3State | None = None) -> tuple[Tensor, H3State | None]:
        q, v = self.q(x_BTD), self.v(x_BTD)
        k = self.shift(self.k(x_BTD), segments, None if state is None else state.shift)
        if state is None:
            kv = by_document(lambda k, v, _: self.diagonal(self._together(k, v)).flatten(2), segments, k, v)
        else:
            u_BTHX = self._together(k, v)
            kv = self._continue(u_BTHX, segments.lengths_B, state)
            state.absorbed(x_BTD.shape[1], segments.lengths_B, lambda n_B: self._continue(u_BTHX, n_B, state))
        heads = (-1, self.head_dim)
        mixed = (q.unflatten(-1, heads)[..., None] * kv.reshape(*q.shape[:2], *heads, self.head_dim)).sum(-2)
        return self.out(mixed.flatten(2).to(q.dtype)), state

    def _together(self, k_BTD: Tensor, v_BTD: Tensor) -> Tensor:
        """k v^T of each head: (B, T, H, X) float32."""
        k, v = (x.float().unflatten(-1, (-1, self.head_dim)) for x in (k_BTD, v_BTD))
        return (k[..., :, None] * v[..., None, :]).flatten(3)

    def _continue(self, u_BTHX: Tensor, lengths_B: Tensor | None, state: H3State) -> Tensor:
        kv_BTHX, state.h_BHXN = self.diagonal.goes_on(u_BTHX, state.h_BHXN, lengths_B)
        return kv_BTHX

    def new_state(self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype) -> H3State:
        heads, states = self.diagonal.C.shape
        h = torch.zeros(batch, heads, self.head_dim**2, states, device=device, dtype=torch.float32)
        return H3State(self.shift.new_state(batch, device, dtype), h)

    def init_weights(self, generator: torch.Generator, std: float, output_std: float) -> None:
        for linear in (self.q, self.k, self.v):
            linear_(linear, std, generator)
        linear_(self.out, output_std, generator)
        self.shift.init_weights(generator)
        self.diagonal.init_weights(generator)

    def flops_per_token(self, span_N: Tensor) -> float:
        """The shift; for each entry of k v^T, the keys of its chunk, and into and out of the state; the gates."""
        heads, states = self.diagonal.C.shape
        entries = heads * self.head_dim**2
        seen = min(float(span_N.mean()), (self.diagonal.chunk + 1) / 2)
        return self.shift.flops_per_token + entries * (2 * seen + 4 * states + 3)

    def parameter_roles(self) -> dict[str, Role]:
        return {"diagonal.A_log": Role("vector"), "diagonal.C": Role("vector")}


class DiagonalSSM(nn.Module):
    """A real diagonal state space model for each head, over every entry of its input alike."""

    def __init__(self, heads: int, states: int, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk
        self.log_dt = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads, states))
        self.C = nn.Parameter(torch.empty(heads, states))
        self.D = nn.Parameter(torch.empty(heads))

    def forward(self, u_BTHX: Tensor) -> Tensor:
        """y of rows of one document each, from its first token: (B, T, H, X)."""
        return self._chunked(u_BTHX, None)[0]

    def goes_on(self, u_BTHX: Tensor, h_BHXN: Tensor, lengths_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """y (B, T, H, X) after what h remembers, and h after each row's `lengths_B` real tokens (None: T)."""
        y_BTHX, enters_HBKXN, L = self._chunked(u_BTHX, h_BHXN)
        B, T = u_BTHX.shape[:2]
        if lengths_B is None:
            lengths_B = torch.full((B,), T, device=u_BTHX.device)
        # h where the last, broken chunk begins, and that chunk's real tokens moved to the end of a whole one.
        rows, full_B = torch.arange(B, device=lengths_B.device), lengths_B // L
        at_BL = lengths_B[:, None] - L + torch.arange(L, device=lengths_B.device)
        tail = u_BTHX[rows[:, None], at_BL.clamp(min=0)]
        tail_HBXL = tail.masked_fill((at_BL < full_B[:, None] * L)[..., None, None], 0).permute(2, 0, 3, 1)
        log_lambda_HN = self._decay()[0]
        faded = torch.exp((lengths_B - full_B * L)[None, :, None] * log_lambda_HN[:, None])[:, :, None]
        h = enters_HBKXN[:, rows, full_B] * faded + (tail_HBXL @ self._to_end(log_lambda_HN, L)[:, None]).float()
        return y_BTHX, h.transpose(0, 1)

    def _chunked(self, u_BTHX: Tensor, h_BHXN: Tensor | None) -> tuple[Tensor, Tensor, int]:
        """y (B, T, H, X); h at the beginning of each chunk and after the last (H, B, K + 1, X, N); and L."""
        B, T, H = u_BTHX.shape[:3]
        L = min(self.chunk, T)
        missing = -T % L
        if missing:
            u_BTHX = F.pad(u_BTHX, (0, 0, 0, 0, 0, missing))
        u_HBKXL = u_BTHX.unflatten(1, (-1, L)).permute(3, 0, 1, 4, 2).contiguous()
        u_HML = u_HBKXL.flatten(1, 3)
        log_lambda_HN, c_HN = self._decay()
        powers_HLN = torch.exp(torch.arange(L, device=u_HML.device)[:, None] * log_lambda_HN[:, None])
        y_HML = u_HML @ _toeplitz((powers_HLN @ c_HN[..., None]).squeeze(-1), self.D)
        if h_BHXN is None and u_HBKXL.shape[2] == 1:
            enters = u_HBKXL.new_zeros(0)  # one chunk, from nothing: nothing is recalled
        else:
            added = (u_HML @ self._to_end(log_lambda_HN, L)).float().unflatten(1, u_HBKXL.shape[1:4])
            whole_HN = torch.exp(L * log_lambda_HN)
            before = torch.zeros_like(added[:, :, 0]) if h_BHXN is None else h_BHXN.transpose(0, 1)
            first = added[:, :, :1] + whole_HN[:, None, None, None] * before[:, :, None]
            added = torch.cat((first, added[:, :, 1:]), 2).flatten(0, 1)
            decays = whole_HN[:, None, None, None].expand(-1, *u_HBKXL.shape[1:3], 1, -1).flatten(0, 1)
            h_HBKXN = linear_scan(decays, added).unflatten(0, (H, B))
            enters = torch.cat((before[:, :, None], h_HBKXN), 2)
            recall_HNL = (c_HN[:, None] * powers_HLN * log_lambda_HN.exp()[:, None]).mT
            y_HML = torch.baddbmm(y_HML, enters[:, :, :-1].flatten(1, 3), recall_HNL)
        y = y_HML.unflatten(1, u_HBKXL.shape[1:4]).permute(1, 2, 4, 0, 3)
        return y.flatten(1, 2)[:, :T], enters, L

    def _decay(self) -> tuple[Tensor, Tensor]:
        """log lambda and c, both (H, N)."""
        A_HN = -self.A_log.float().exp()
        log_lambda_HN = self.log_dt.float().exp()[:, None] * A_HN
        return log_lambda_HN, self.C.float() * torch.expm1(log_lambda_HN) / A_HN

    @staticmethod
    def _to_end(log_lambda_HN: Tensor, length: int) -> Tensor:
        """(H, L, N): lambda^(L - 1 - l), by which a chunk's token l has faded at the chunk's end."""
        left = torch.arange(length - 1, -1, -1, device=log_lambda_HN.device)
        return torch.exp(left[:, None] * log_lambda_HN[:, None])

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        uniform_(self.log_dt, math.log(DT_RANGE[0]), math.log(DT_RANGE[1]), generator)
        states = self.A_log.shape[1]
        self.A_log.copy_(torch.arange(1, states + 1).log().expand_as(self.A_log))
        normal_(self.C, 1.0, generator)
        nn.init.ones_(self.D)


def _toeplitz(kernel_HL: Tensor, D_H: Tensor) -> Tensor:
    """(H, L, L): at (j, i) what token j gives to token i of its chunk: K(i - j), and D more if it is itself."""
    H, L = kernel_HL.shape
    place = torch.arange(L, device=kernel_HL.device)
    lag = place - place[:, None]
    matrix = kernel_HL[:, lag.clamp(min=0)].masked_fill(lag < 0, 0)
    return matrix + torch.diag_embed(D_H.float()[:, None].expand(H, L))
