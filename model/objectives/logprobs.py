"""Log-probabilities of given tokens, in chunks, with a gradient for each: for preferences and policies.

    logp[n] = z[n, target[n]] - logsumexp(z[n]),   z = cap(W h)

Unlike next_token.py's sum, the gradient that arrives differs from token to token and is known only in
`backward`, which makes each chunk's logits again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.decoder import Decoder
from model.objectives.next_token import chunk_rows
from model.segments import Segments
from model.softcap import slope, softcap_


def sequence_logprobs(model: Decoder, tokens_BT: Tensor, mask_BT: Tensor, segments: Segments | None = None) -> Tensor:
    """(B, T) float32: log p(token t | tokens before it) where the mask is True, 0 elsewhere.

    Rows are right-padded documents (pads change nothing) unless `segments` says otherwise. A first token has
    nothing before it: mask[:, 0] must be False.
    """
    if bool(mask_BT[:, 0].any()):
        raise ValueError("mask_BT[:, 0] must be False: the first token of a row has no context to be predicted from")
    hidden_BTD, _ = model(tokens_BT, segments=segments)
    rows, times = mask_BT.nonzero(as_tuple=True)
    picked_N = token_logprobs(
        hidden_BTD[rows, times - 1], model.head_weight, tokens_BT[rows, times], model.config.logit_softcap
    )
    return torch.zeros(tokens_BT.shape, device=tokens_BT.device).index_put((rows, times), picked_N)


def token_logprobs(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, softcap: float | None = None) -> Tensor:
    """(N,) float32 log-probabilities of the targets."""
    if torch.is_autocast_enabled(hidden_ND.device.type):
        hidden_ND = hidden_ND.to(torch.get_autocast_dtype(hidden_ND.device.type))
    return _ChunkedLogprobs.apply(hidden_ND, weight_VD, targets_N, softcap)  # type: ignore[return-value]


def _logits(h: Tensor, w_VD: Tensor, softcap: float | None) -> Tensor:
    return softcap_(F.linear(h, w_VD).float(), softcap)


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, softcap):
        w_VD = weight_VD.to(hidden_ND.dtype)
        chunk = chunk_rows(weight_VD.shape[0], hidden_ND.device)
        picked, norms = [], []
        for h, target in zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True):
            z = _logits(h, w_VD, softcap)
            norms.append(torch.logsumexp(z, 1))
            picked.append(z.gather(1, target[:, None]).squeeze(1))
        lse = torch.cat(norms) if norms else hidden_ND.new_zeros(0)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, lse)
        ctx.softcap, ctx.chunk = softcap, chunk
        return (torch.cat(picked) if picked else lse.float()) - lse

    @staticmethod
    def backward(ctx, *grads):
        hidden_ND, weight_VD, targets_N, lse_N = ctx.saved_tensors
        w_VD = weight_VD.to(hidden_ND.dtype)
        d_hidden = torch.empty_like(hidden_ND)
        d_weight = torch.zeros(weight_VD.shape, dtype=torch.float32, device=weight_VD.device)
        for start in range(0, hidden_ND.shape[0], ctx.chunk):
            at = slice(start, start + ctx.chunk)
            h, target, grad = hidden_ND[at], targets_N[at], grads[0][at]
            z = _logits(h, w_VD, ctx.softcap)
            steep = None if ctx.softcap is None else slope(z, ctx.softcap)
            dz = z.sub_(lse_N[at, None]).exp_().neg_()
            dz[torch.arange(target.shape[0], device=dz.device), target] += 1
            dz *= grad[:, None]
            if steep is not None:
                dz *= steep
            dz = dz.to(h.dtype)
            d_hidden[at] = dz @ w_VD
            d_weight += (dz.t() @ h).float()
        return d_hidden, d_weight.to(weight_VD.dtype), None, None
