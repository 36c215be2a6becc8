"""Sliding-window attention with global tokens: Longformer, Beltagy et al. 2020, arXiv 2004.05150, section 3.1.

    query p sees key j of its document if   p - W < j <= p   or   j < G and j <= p      (W: window, G: global_tokens)

and, where the model isn't causal, if |p - j| < W, j < G or p < G. A document's first G tokens are its global ones;
they use the same projections as the others. Each layer of this kind sees W - 1 tokens further back.

Time and memory are linear in T without a kernel of its own: queries are cut into blocks of C, and each block meets, in
one scaled_dot_product_attention, the G global keys and the blocks that its windows reach into:

    query        block b
    keys    [ global | block b-2 | block b-1 | block b ]      causal, W = 2 C: nothing more is in reach

Blocks far from a document's ends share one C x (G + W + C) mask and are one batch; the few others have their own.
For generation a ring of the last W keys, and the global ones, are kept, however long the text is (kv_cache.py).

Shapes as in attention.py; N blocks, C their length, S keys that a block meets.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.kv_cache import WindowCache
from model.layers.attention import Attention, attend
from model.layers.rope import Rope
from model.segments import Segments


class Window(Attention):
    sees_all = False

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.window, self.global_tokens = config.window, config.global_tokens
        self.block = -(-self.window // 2)  # a query meets 1.5 W keys; smaller blocks gained nothing (docs/lab.md)
        self.back = -(-(self.window - 1) // self.block)  # blocks that a window reaches into, beside its own
        self.ahead = 0 if config.causal else self.back
        if self.rope is not None and config.rope_theta_local is not None:
            self.rope = Rope(config.rope_dim, config.rope_theta_local)

    def _mix(self, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, lengths_B: Tensor | None) -> Tensor:
        T, G, C = q_BTHD.shape[1], min(self.global_tokens, q_BTHD.shape[1]), self.block
        if self.window >= T:
            return super()._mix(q_BTHD, k_BTKD, v_BTKD, lengths_B)
        N = -(-T // C)
        # Blocks whose windows touch no end of a document, and of which no window holds a global token, are alike.
        sizes_B = None if self.causal else lengths_B  # under a causal mask no token sees the pads, which come last
        shortest = T if sizes_B is None else int(sizes_B.min())
        low = min(N, max(self.back, -(-(self.window + G - 1) // C) if G else 0))
        high = max(low, min(N, N if self.causal else shortest // C - self.back))
        spans = [(b, b + 1) for b in range(low)] + [(low, high)] * (low < high) + [(b, b + 1) for b in range(high, N)]
        q = F.pad(q_BTHD, (0, 0, 0, 0, 0, N * C - T)).unflatten(1, (N, C))
        k, v = (_Reach.apply(x, G, C, self.back, self.ahead, spans) for x in (k_BTKD, v_BTKD))
        mixed = []
        for (start, stop), q_BnCHD, k_NSKD, v_NSKD in zip(
            spans, q.split([b - a for a, b in spans], 1), k, v, strict=True
        ):
            seen = self._seen(start, G, T, None if (start, stop) == (low, high) else sizes_B, q.device)
            q_k_v = (x.transpose(1, 2) for x in (q_BnCHD.flatten(0, 1), k_NSKD, v_NSKD))
            out_NHCD = attend(*q_k_v, seen=seen, scale=self.scale)
            mixed.append(out_NHCD.transpose(1, 2).reshape(-1, (stop - start) * C, *q.shape[3:]))
        mixed = torch.cat(mixed, 1)[:, :T]
        if self.causal or not G:
            return mixed
        first = super()._mix(q_BTHD[:, :G], k_BTKD, v_BTKD, lengths_B)
        return torch.cat((first, mixed[:, G:]), 1)

    def _seen(self, b: int, G: int, T: int, sizes_B: Tensor | None, device: torch.device) -> Tensor:
        """(B or 1, 1, C, S): which keys the queries of block `b` see, a global one at most once."""
        p_C1 = torch.arange(b * self.block, (b + 1) * self.block, device=device)[:, None]
        first_G = torch.arange(G, device=device)
        near_S = torch.arange((b - self.back) * self.block, (b + 1 + self.ahead) * self.block, device=device)
        before_CG, before_CS = p_C1 - first_G, p_C1 - near_S
        if self.causal:
            far, near = before_CG >= self.window, (before_CS >= 0) & (before_CS < self.window)
        else:
            far, near = before_CG.abs() >= self.window, before_CS.abs() < self.window
        size_B11 = T if sizes_B is None else sizes_B.to(device)[:, None, None]
        near = near & (near_S >= 0) & (near_S < size_B11) | (before_CS == 0)  # a pad sees itself: no softmax of nothing
        far = (far & (first_G < size_B11)).expand(*near.shape[:-1], G)
        return torch.cat((far, near), -1).view(-1, 1, self.block, G + near_S.shape[0])

    def _continue(
        self, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, segments: Segments, cache: WindowCache
    ) -> Tensor:
        """In pieces of at most a ring's length: a longer one would write over keys that its first queries see."""
        mixed = []
        for start in range(0, q_BTHD.shape[1], cache.ring):
            at = slice(start, start + cache.ring)
            q, k, v, p_BT = (x[:, at] for x in (q_BTHD, k_BTKD, v_BTKD, segments.positions_BT))
            real_BT = None if segments.real_BT is None else segments.real_BT[:, at]
            one = p_BT.shape[1] == 1
            if one:  # it takes the slot of the key that has just left its window: no key is copied
                cache.write(k, v, p_BT, real_BT)
            used = cache.used((segments.earlier or 0) + start + one)
            held_BS = cache.positions(p_BT[:, 0] + one)[:, :used]
            keys, values = cache.read(used, q.dtype)
            if not one:
                held_BS = torch.cat((held_BS, p_BT), 1)
                keys, values = torch.cat((keys, k.transpose(1, 2)), 2), torch.cat((values, v.transpose(1, 2)), 2)
                cache.write(k, v, p_BT, real_BT)
            before_BTS = p_BT[:, :, None] - held_BS[:, None]
            near, far = (before_BTS >= 0) & (before_BTS < self.window), before_BTS >= self.window
            seen_BTS = torch.cat((far[:, :, : cache.first], near[:, :, cache.first :]), 2) & (held_BS >= 0)[:, None]
            mixed.append(attend(q.transpose(1, 2), keys, values, seen=seen_BTS[:, None], scale=self.scale))
        return torch.cat(mixed, 2).transpose(1, 2)

    def _remember(self, k_BTKD: Tensor, v_BTKD: Tensor, segments: Segments, cache: WindowCache) -> None:
        for start in range(0, k_BTKD.shape[1], cache.ring):
            at = slice(start, start + cache.ring)
            real_BT = None if segments.real_BT is None else segments.real_BT[:, at]
            cache.write(k_BTKD[:, at], v_BTKD[:, at], segments.positions_BT[:, at], real_BT)

    def new_state(self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype) -> WindowCache:
        self._check_causal()
        limits = self.global_tokens, self.window
        return WindowCache.empty(batch, self.n_kv_heads, limits, max_len, self.head_dim, device, dtype)

    def _keys_seen(self, span_N: Tensor) -> Tensor:
        """Not counting the other keys that its block meets.

        Both ways, a span is a document's length, and the mean over its places stands for each of them.
        """
        W, G = self.window, self.global_tokens
        if self.causal:
            return span_N.clamp(max=W + G)
        lengths, of = span_N.long().unique(return_inverse=True)
        means = []
        for length in lengths.tolist():
            place = torch.arange(length)
            first, last = (place - W + 1).clamp(min=0), (place + W - 1).clamp(max=length - 1)
            pairs = torch.where(place < G, length, last - first + 1 + first.clamp(max=G)).sum()
            means.append(pairs.double() / max(1, length))
        return torch.stack(means)[of]


class _Reach(torch.autograd.Function):
    """The keys, or values, that blocks of queries meet.

    (B, T, K, D) -> for each span (start, stop) of blocks, (B * (stop - start), G + S, K, D): the first G, then those of
    the blocks that each reaches.

    The reaches overlap: without global keys, and with one row, the result is a view. Its gradient is added up in place;
    autograd's own would fill T tokens with zeros for each slice, which costs as much as a third of the attention.
    """

    @staticmethod
    def forward(ctx, x_BTKD: Tensor, G: int, C: int, back: int, ahead: int, spans: list[tuple[int, int]]):
        T, N = x_BTKD.shape[1], spans[-1][1]
        ctx.shape, ctx.settings = x_BTKD.shape, (G, C, back, N + ahead, spans)
        padded = F.pad(x_BTKD, (0, 0, 0, 0, back * C, (N + ahead) * C - T))
        near_BNSKD = padded.unfold(1, (back + 1 + ahead) * C, C).movedim(-1, 2)
        parts = [near_BNSKD[:, start:stop] for start, stop in spans]
        if G:
            parts = [torch.cat((x_BTKD[:, None, :G].expand(-1, x.shape[1], -1, -1, -1), x), 2) for x in parts]
        return tuple(x.flatten(0, 1) for x in parts)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (B, T, *heads), (G, C, back, after, spans) = ctx.shape, ctx.settings
        dx = grads[0].new_zeros(B, back + after, C, *heads)
        first = grads[0].new_zeros(B, G, *heads)
        for (start, stop), grad in zip(spans, grads, strict=True):
            grad = grad.unflatten(0, (B, -1))
            for i in range((grad.shape[2] - G) // C):
                dx[:, start + i : stop + i] += grad[:, :, G + i * C : G + (i + 1) * C]
            first += grad[:, :, :G].sum(1)
        dx = dx.flatten(1, 2)[:, back * C : back * C + T]
        dx[:, :G] += first
        return dx, None, None, None, None, None
