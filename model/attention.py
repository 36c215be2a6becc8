"""Multi-head attention: softmax(Q K^T / sqrt(D)) V; Vaswani et al. 2017, with grouped keys and values
(MQA: Shazeer 2019, arXiv 1911.02150; GQA: Ainslie et al. 2023, arXiv 2305.13245) and QK-norm (Henry et al.
2020).

Shapes: B rows, T tokens, D head size, H heads of queries, K heads of keys and values, N documents, L their
length.

Packed documents never see each other and no T x T mask exists: `Segments.groups` regroups the tokens by
document, each group is one causal scaled_dot_product_attention (flash kernel on CPU and GPU).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.init import linear_
from model.norm import RMSNorm
from model.optim.roles import Role
from model.rope import Rope
from model.segments import Groups, Segments
from model.state import KVCache


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.kv_heads, config.head_dim
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.sizes = (q, kv, kv)
        self.qkv = nn.Linear(config.d_model, sum(self.sizes), bias=config.bias)
        self.out = nn.Linear(self.sizes[0], config.d_model, bias=config.bias)
        self.rope = Rope(config.head_dim, config.rope_theta) if config.position == "rope" else None
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(self, x_BTD: Tensor, segments: Segments, state: KVCache | None = None) -> tuple[Tensor, KVCache | None]:
        qkv = self.qkv(x_BTD)
        if state is not None:
            mixed = self._cached(qkv, segments, state)
        elif segments.whole:
            mixed = self._causal(qkv)
        else:
            mixed = self._packed(qkv, segments.groups)
        return self.out(mixed), state

    def _causal(self, qkv_BTE: Tensor) -> Tensor:
        """Rows of one document each, from its first token: (B, T, E) -> (B, T, H*D)."""
        q, k, v = self._heads(qkv_BTE)
        if self.rope is not None:
            q, k = self.rope.rotate(q), self.rope.rotate(k)
        mixed = _attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=True)
        return mixed.transpose(1, 2).flatten(2)

    def _packed(self, qkv_BTE: Tensor, groups: Groups) -> Tensor:
        B, T, E = qkv_BTE.shape
        slots_ME = _Regroup.apply(qkv_BTE.reshape(B * T, E), groups.index, groups.slot)
        parts = slots_ME.split([n * length for n, length in groups.shapes])
        mixed = [
            self._causal(part.view(n, length, E)).reshape(n * length, -1)
            for part, (n, length) in zip(parts, groups.shapes, strict=True)
        ]
        return _Ungroup.apply(torch.cat(mixed), groups.slot).view(B, T, -1)

    def _cached(self, qkv_BTE: Tensor, segments: Segments, cache: KVCache) -> Tensor:
        """T tokens after those that the cache remembers; each row at its own position."""
        q, k, v = self._heads(qkv_BTE)
        longest = segments.longest
        if self.rope is not None:
            q = self.rope.rotate(q, segments.positions_BT, longest)
            k = self.rope.rotate(k, segments.positions_BT, longest)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        cache.write(k, v, segments.positions_BT)
        if segments.earlier == 0:  # prefill
            mixed = _attend(q, k, v, causal=True)
        else:
            seen_BTS = torch.arange(longest, device=q.device) <= segments.positions_BT[:, :, None]
            k, v = cache.k_BHSD[:, :, :longest].to(q.dtype), cache.v_BHSD[:, :, :longest].to(q.dtype)
            mixed = _attend_cache(q, k, v, seen_BTS)
        return mixed.transpose(1, 2).flatten(2)

    def _heads(self, qkv_BTE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, E) -> q (B, T, H, D), k and v (B, T, K, D), the first two normed."""
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in qkv_BTE.split(self.sizes, -1))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def new_state(self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype) -> KVCache:
        return KVCache.empty(batch, self.n_kv_heads, max_len, self.head_dim, device, dtype)

    def init_weights(self, generator: torch.Generator, std: float, output_std: float) -> None:
        linear_(self.qkv, std, generator)
        linear_(self.out, output_std, generator)
        for norm in (self.q_norm, self.k_norm):
            if norm is not None:
                norm.init_weights()

    def flops_per_token(self, span: float) -> float:
        """Forward FLOPs of scores and values for a query that sees `span` keys; the matrices are counted
        apart.
        """
        return 4 * self.n_heads * self.head_dim * span

    def parameter_roles(self) -> dict[str, Role]:
        return {"qkv.weight": Role("matrix", rows=self.sizes)}


def _attend(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, causal: bool) -> Tensor:
    """Attention without a mask, each key-value head repeated for its group of queries."""
    group = q_BHTD.shape[1] // k_BKTD.shape[1]
    if group > 1:
        k_BKTD, v_BKTD = (x.repeat_interleave(group, dim=1) for x in (k_BKTD, v_BKTD))
    return F.scaled_dot_product_attention(q_BHTD, k_BKTD, v_BKTD, is_causal=causal)


def _attend_cache(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, seen_BTS: Tensor) -> Tensor:
    """Few queries over many remembered keys. The queries of a group are laid side by side: no key is
    copied.
    """
    B, H, T, D = q_BHTD.shape
    K = k_BKSD.shape[1]
    q = q_BHTD.reshape(B, K, H // K * T, D)
    seen = seen_BTS[:, None].repeat(1, 1, H // K, 1) if T > 1 else seen_BTS[:, None]
    return F.scaled_dot_product_attention(q, k_BKSD, v_BKSD, attn_mask=seen).reshape(B, H, T, D)


class _Regroup(torch.autograd.Function):
    """Tokens to slots. Each token has exactly one real slot, so the gradient is a gather too, not a
    scatter-add.
    """

    @staticmethod
    def forward(ctx, x_NE: Tensor, index: Tensor, slot: Tensor) -> Tensor:
        ctx.save_for_backward(slot)
        return x_NE.index_select(0, index)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None


class _Ungroup(torch.autograd.Function):
    """Slots back to tokens; a pad's slot gets no gradient."""

    @staticmethod
    def forward(ctx, x_ME: Tensor, slot: Tensor) -> Tensor:
        ctx.save_for_backward(slot)
        ctx.slots = x_ME.shape[0]
        return x_ME.index_select(0, slot)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (slot,) = ctx.saved_tensors
        out = grads[0].new_zeros(ctx.slots, grads[0].shape[1])
        return out.index_copy_(0, slot, grads[0]), None
