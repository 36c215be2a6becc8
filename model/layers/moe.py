"""Mixture of experts: each token goes to k of E feed-forwards.

Shazeer et al. 2017, arXiv 1701.06538, with Mixtral's router (Jiang et al. 2024, arXiv 2401.04088, section 2.1) and
shared experts (Dai et al. 2024, DeepSeekMoE, arXiv 2401.06066, section 3.2).

    p = softmax(W_r x)     y = sum over the k largest p_e of  w_e FF_e(x)  [+ FF_shared(x)],    w = p / sum of the k

Shapes: N tokens, D model size, E experts, K chosen for each token, F an expert's width, M = N K slots.

Dropless: the (token, expert) pairs are sorted by expert, so that each expert's tokens are one contiguous run
of slots and its layers are one matrix product each, however uneven the runs are. torch's grouped product does
them all: one kernel in bf16 on CUDA, which needs no counts on the host; elsewhere a product for each run.

    token 0 -> 2, 0        slots by expert:  0: t0 t1 | 1: t2 | 2: t0 t1 t2        (here E = 3, K = 2)
    token 1 -> 0, 2
    token 2 -> 1, 2

What balances the experts is in balance.py. Experts have no biases, whatever `ff_bias` says. A token is mixed with
no other, but how a product rounds may depend on how many rows it has: other company, other last bit (1e-7).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.balance import Balance
from model.config import ModelConfig
from model.init import linear_, normal_
from model.layers.feed_forward import FeedForward, activate
from model.roles import Role


class Plan(NamedTuple):
    """Which slot holds which token for which expert."""

    token_M: Tensor  # the token in each slot
    pair_M: Tensor  # its choice: token * K + k
    slot_NK: Tensor  # the slot of each choice, the inverse of pair_M
    end_E: Tensor  # int32; where each expert's run of slots ends


class MoE(nn.Module):
    """A drop-in for FeedForward. Weights of all experts are stacks, one for each layer of the feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        moe = config.moe
        self.kind, self.top_k, self.normalise = config.feed_forward, moe.top_k, moe.normalise
        self.n_experts = E = moe.n_experts
        D, width = config.d_model, config.expert_width
        self.router = nn.Linear(D, E, bias=False)
        self.balance = Balance(moe)
        self.gate = nn.Parameter(torch.empty(E, width, D)) if config.gated else None
        self.up = nn.Parameter(torch.empty(E, width, D))
        self.down = nn.Parameter(torch.empty(E, D, width))
        self.shared = FeedForward(config, moe.n_shared * width) if moe.n_shared else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        weight_NK, plan = self.route(x_ND)
        kind = x_ND.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_ND.dtype
        x_MD = _Dispatch.apply(x_ND.to(dtype), plan.token_M, plan.slot_NK)
        x_MD = self.slots(x_MD)
        gate, up, down = (self.stack(name) for name in ("gate", "up", "down"))
        assert up is not None and down is not None
        up_MF = _grouped(x_MD, up, plan)
        gate_MF = None if gate is None else _grouped(x_MD, gate, plan)
        y_MD = _grouped(self.slots(activate(self.kind, gate_MF, up_MF)), down, plan)
        y_ND = _Combine.apply(y_MD, weight_NK.to(dtype), plan.token_M, plan.pair_M, plan.slot_NK)
        if self.shared is not None:
            y_ND = y_ND + self.shared(x_ND)
        return y_ND.view(x_BTD.shape)

    def stack(self, name: str) -> Tensor | nn.Module | None:
        """A stack of the experts' weights as it is multiplied by; QAT rounds it."""
        return getattr(self, name)

    def slots(self, x_MI: Tensor) -> Tensor:
        """What goes into a product with a stack; QAT may round it."""
        return x_MI

    def route(self, x_ND: Tensor) -> tuple[Tensor, Plan]:
        """(N, K) float32 weights of the chosen experts, and where their tokens go; in fp32, also under autocast."""
        with torch.autocast(x_ND.device.type, enabled=False):
            z_NE = F.linear(x_ND.float(), self.router.weight.float())
            with torch.no_grad():
                expert_NK = self.balance.preference(torch.softmax(z_NE, 1)).topk(self.top_k, 1).indices
                plan = make_plan(expert_NK, self.n_experts)
                count_E = plan.end_E.diff(prepend=plan.end_E.new_zeros(1))
            p_NE = torch.softmax(self.balance.attach(z_NE, count_E), 1)
            weight_NK = p_NE.gather(1, expert_NK)
            if self.normalise:
                weight_NK = weight_NK / weight_NK.sum(1, keepdim=True)
            return weight_NK, plan

    def init_weights(self, generator: torch.Generator, std: float, output_std: float) -> None:
        linear_(self.router, std, generator)
        self.balance.init_weights()
        for weight in (self.gate, self.up):
            if weight is not None:
                normal_(weight, std, generator)
        normal_(self.down, output_std, generator)
        if self.shared is not None:
            self.shared.init_weights(generator, std, output_std)

    @property
    def expert_size(self) -> int:
        """Weights of one expert."""
        return sum(w[0].numel() for w in (self.gate, self.up, self.down) if w is not None)

    def parameter_roles(self) -> dict[str, Role]:
        experts = {name: Role("matrix") for name in ("gate", "up", "down") if getattr(self, name) is not None}
        return {"router.weight": Role("router"), **experts}


def make_plan(expert_NK: Tensor, n_experts: int) -> Plan:
    """Sort the choices by expert; tokens of an expert stay in their order."""
    K = expert_NK.shape[1]
    sorted_M, pair_M = expert_NK.flatten().sort(stable=True)
    end_E = torch.searchsorted(sorted_M, torch.arange(n_experts, device=sorted_M.device), right=True, out_int32=True)
    slot_M = torch.empty_like(pair_M)
    slot_M[pair_M] = torch.arange(len(pair_M), device=pair_M.device)
    return Plan(pair_M // K, pair_M, slot_M.view(-1, K), end_E)


def _grouped(x_MI: Tensor, weight_EOI: Tensor | nn.Module, plan: Plan) -> Tensor:
    """(M, O): each expert's run of slots times its own weight; a module does that itself (quantize/linear.py)."""
    if isinstance(weight_EOI, nn.Module):
        return weight_EOI(x_MI, plan.end_E)
    return torch._grouped_mm(x_MI, weight_EOI.to(x_MI.dtype).mT, offs=plan.end_E)


class _Dispatch(torch.autograd.Function):
    """Tokens to slots. Each token has exactly K slots, so its gradient is a sum of K gathered rows."""

    @staticmethod
    def forward(ctx, x_ND: Tensor, token_M: Tensor, slot_NK: Tensor) -> Tensor:
        ctx.save_for_backward(slot_NK)
        return x_ND.index_select(0, token_M)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return F.embedding_bag(ctx.saved_tensors[0], grads[0], mode="sum"), None, None


class _Combine(torch.autograd.Function):
    """Slots back to tokens: the weighted sum of each token's K slots."""

    @staticmethod
    def forward(ctx, y_MD: Tensor, weight_NK: Tensor, token_M: Tensor, pair_M: Tensor, slot_NK: Tensor) -> Tensor:
        ctx.save_for_backward(y_MD, weight_NK, token_M, pair_M, slot_NK)
        return F.embedding_bag(slot_NK, y_MD, mode="sum", per_sample_weights=weight_NK)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        y_MD, weight_NK, token_M, pair_M, slot_NK = ctx.saved_tensors
        g_MD = grads[0].index_select(0, token_M)
        dy_MD = g_MD * weight_NK.flatten()[pair_M, None]
        dweight_M = g_MD.mul_(y_MD).sum(1)
        return dy_MD, dweight_M[slot_NK], None, None, None
