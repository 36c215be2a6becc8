"""Multi-head attention: softmax(Q K^T / sqrt(D)) V (Vaswani et al. 2017).

With grouped keys and values (MQA: Shazeer 2019, arXiv 1911.02150; GQA: Ainslie et al. 2023, arXiv 2305.13245) and
QK-norm (Henry et al. 2020, arXiv 2010.04245; over all heads at once: OLMo 2, arXiv 2501.00656).

Shapes: B rows, T tokens, D head size, H heads of queries, K heads of keys and values, S keys.

Packed documents never see each other and no T x T mask exists: `by_document` regroups the tokens by
document, each group is one causal scaled_dot_product_attention (flash kernel on CPU and GPU). Two other kernels are
taken where they are faster: `varlen`, all documents at once, on CUDA; `blocked`, in bf16 on a CPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import mup
from model.config import ModelConfig
from model.init import linear_
from model.kernels import blocked, varlen
from model.kv_cache import KVCache
from model.layers.norm import rms_norm
from model.layers.rope import Rope
from model.roles import Role
from model.segments import Segments, by_document


class Attention(nn.Module):
    """Attention over all that came before, or over all of a document.

    Other patterns of who sees whom, `window`, replace `_mix`, `_continue`, `_remember`, `_keys_seen` and `new_state`.
    """

    sees_all = True  # of its document, or what came before in it

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.kv_heads, config.head_dim
        self.causal, self.scale = config.causal, mup.attention_scale(config)
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.sizes = (q, kv, kv)
        qkv_bias = config.has_qkv_bias
        out_bias = config.has_out_bias
        self.qkv = nn.Linear(config.d_model, sum(self.sizes), bias=qkv_bias)
        self.out = nn.Linear(self.sizes[0], config.d_model, bias=out_bias)
        rope = config.position == "rope"
        self.rope = Rope(config.rope_dim, config.rope_theta, config.rope_scaling) if rope else None
        over_all = config.qk_norm_over == "all"
        self.q_norm = rms_norm(config, q if over_all else self.head_dim) if config.qk_norm else None
        self.k_norm = rms_norm(config, kv if over_all else self.head_dim) if config.qk_norm else None

    def forward(self, x_BTD: Tensor, segments: Segments, state: KVCache | None = None) -> tuple[Tensor, KVCache | None]:
        qkv = self.qkv(x_BTD)
        if state is not None:
            mixed = self._cached(qkv, segments, state)
        elif self.sees_all and varlen.usable(qkv, segments):
            q, k, v = self._heads(qkv, segments)
            mixed = varlen.attend_documents(q, k, v, segments, causal=self.causal, scale=self.scale).flatten(2)
        else:
            mixed = by_document(self._documents, segments, qkv)
        return self.out(mixed), state

    def _documents(self, qkv_BTE: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Rows of one document each, from its first token: (B, T, E) -> (B, T, H*D)."""
        return self._mix(*self._heads(qkv_BTE), lengths_B).flatten(2)

    def _cached(self, qkv_BTE: Tensor, segments: Segments, cache: KVCache) -> Tensor:
        """T tokens after those that the cache remembers; each row at its own position."""
        if segments.earlier:
            return self._continue(*self._heads(qkv_BTE, segments), segments, cache).flatten(2)
        q, k, v = self._heads(qkv_BTE)  # prefill
        self._remember(k, v, segments, cache)
        return self._mix(q, k, v, segments.lengths_B).flatten(2)

    def _heads(self, qkv_BTE: Tensor, segments: Segments | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, E) -> q (B, T, H, D), k and v (B, T, K, D).

        The first two are normed, and turned by their positions, which are 0, 1, 2, ... without `segments`.
        """
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in qkv_BTE.split(self.sizes, -1))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = (
                norm(x.reshape(*x.shape[:2], -1, norm.weight.shape[0])).reshape(x.shape)
                for norm, x in ((self.q_norm, q), (self.k_norm, k))
            )
        if self.rope is not None:
            positions_BT, longest = (None, 0) if segments is None else (segments.positions_BT, segments.longest)
            q, k = self.rope.rotate(q, positions_BT, longest), self.rope.rotate(k, positions_BT, longest)
        return q, k, v

    def _mix(self, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Each token's mixture, (B, T, H, D), over rows that hold a document from its first token."""
        q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKD))
        seen = None
        if not self.causal and lengths_B is not None:  # pads come last: under a causal mask no token sees them
            seen = (torch.arange(k.shape[2], device=k.device) < lengths_B.to(k.device)[:, None])[:, None, None]
        return attend(q, k, v, causal=self.causal, seen=seen, scale=self.scale).transpose(1, 2)

    def _continue(self, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, segments: Segments, cache: KVCache) -> Tensor:
        """As `_mix`, of T tokens that go on from what the cache remembers, which they are added to."""
        self._remember(k_BTKD, v_BTKD, segments, cache)
        q, longest = q_BTHD.transpose(1, 2), min(segments.longest, cache.capacity)
        seen_BTS = segments.seen(longest)
        k, v = cache.read(longest, q.dtype)
        return attend(q, k, v, seen=seen_BTS[:, None], scale=self.scale).transpose(1, 2)

    def _remember(self, k_BTKD: Tensor, v_BTKD: Tensor, segments: Segments, cache: KVCache) -> None:
        beyond = segments.longest > cache.capacity
        cache.write(k_BTKD, v_BTKD, segments.positions_BT, segments.real_BT if beyond else None)

    def new_state(self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype) -> KVCache:
        self._check_causal()
        return KVCache.empty(batch, self.n_kv_heads, max_len, self.head_dim, device, dtype)

    def _check_causal(self) -> None:
        """ValueError where keys and values can't be kept."""
        if not self.causal:
            raise ValueError(
                "causal = false: a token's keys and values change with each token that comes after it, so none can be "
                "kept from one forward pass to the next; run the model without a state, as the diffusion sampler does"
            )

    def init_weights(self, generator: torch.Generator, std: float, output_std: float) -> None:
        linear_(self.qkv, std, generator)
        linear_(self.out, output_std, generator)
        for norm in (self.q_norm, self.k_norm):
            if norm is not None:
                norm.init_weights()

    def flops_per_token(self, span_N: Tensor) -> float:
        """Forward FLOPs of scores and values; the matrices are counted apart."""
        return 4 * self.n_heads * self.head_dim * float(self._keys_seen(span_N).mean())

    def _keys_seen(self, span_N: Tensor) -> Tensor:
        """How many keys each query sees."""
        return span_N

    def parameter_roles(self) -> dict[str, Role]:
        return {"qkv.weight": Role("matrix", rows=self.sizes)}


def attend(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    *,
    causal: bool = False,
    seen: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of grouped heads, (B, H, T, D).

    causal: query t sees keys 0 ... t. seen: bool, broadcast to (B, 1, T, S).
    """
    B, H, T, D = q_BHTD.shape
    if seen is None and blocked.usable(q_BHTD, k_BKSD):
        return blocked.attend_in_blocks(q_BHTD, k_BKSD, v_BKSD, causal, D**-0.5 if scale is None else scale)
    group = H // k_BKSD.shape[1]
    if group > 1 and causal:
        k_BKSD, v_BKSD = (x.repeat_interleave(group, dim=1) for x in (k_BKSD, v_BKSD))
    elif group > 1:  # without the order of queries a group's can be laid side by side: no key is copied
        q_BHTD = q_BHTD.reshape(B, H // group, group * T, D)
        seen = seen.repeat(1, 1, group, 1) if seen is not None and seen.shape[2] > 1 else seen
    mixed = F.scaled_dot_product_attention(q_BHTD, k_BKSD, v_BKSD, seen, is_causal=causal, scale=scale)
    return mixed.reshape(B, H, T, D)
