"""Bits per byte on held-out documents: the model's, beside two baselines on the very same documents.

    bpb = sum of -log2 p(token) / UTF-8 bytes of the text        comparable across tokenizers

The baselines are the unigram model (the training tokens' frequencies, add-one smoothed) and `gzip -9` of the text.

Of a diffusion model `bpb` is an upper bound, and `bpb_bound_error` beside it the standard error of its estimate. Such a
model sees how long a text is; so that the bound is one of the text itself, each document's length is paid for, in
Elias's delta code (1975), a distribution over all lengths.
"""

from __future__ import annotations

import gzip
import math
from typing import TYPE_CHECKING

from cluster.evaluate.summary import BITS, BOUND_ERROR

if TYPE_CHECKING:
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from cluster.evaluate.config import EvaluateConfig
    from cluster.stage import Workspace
    from cluster.store.artifact import Artifact
    from model.decoder import Decoder


def summarise(scores: list[dict]) -> dict[str, float]:
    """Bits per byte of each source and over all bytes, for the model and its two baselines."""
    metrics = {}
    total = sum(s["bytes"] for s in scores)  # 0 only if nothing was scored
    for name in BITS:
        for score in scores:
            metrics[f"{name}/{score['source']}"] = score[name]
        if total:
            metrics[name] = sum(s[name] * s["bytes"] for s in scores) / total
    for score in scores:
        if BOUND_ERROR in score:
            metrics[f"{BOUND_ERROR}/{score['source']}"] = score[BOUND_ERROR]
    if total and any(BOUND_ERROR in score for score in scores):
        metrics[BOUND_ERROR] = math.hypot(*(s[BOUND_ERROR] * s["bytes"] for s in scores)) / total
    return metrics


def not_measured(unscored: list[str], all_: bool, text: bool = True) -> dict[str, str]:
    """Why there are no bits per byte of sources without held-out text, and of the whole if there are no others.

    text: whether the line reads any.
    """
    why = {f"{name}/{s}": f"there is no held-out text of the source {s!r}" for s in unscored for name in BITS}
    none = "there is no held-out text of any source" if text else "the recipe has no [[sources]]"
    return why | (dict.fromkeys(BITS, none) if all_ else {})


def score_source(model: Artifact, tokens: Artifact, source: str, config: EvaluateConfig) -> dict | None:
    """Bits per byte of one source's held-out documents: the model's, the unigram's, gzip -9's; None if it has none."""
    import torch

    from cluster.data.tokenizer.tokenizer import Tokenizer
    from model.checkpoint import load_model

    torch.set_num_threads(1)
    return score_decoder(load_model(model.path()), Tokenizer(model.path()), tokens, source, config)


def score_decoder(
    decoder: Decoder, tokenizer: Tokenizer, tokens: Artifact, source: str, config: EvaluateConfig
) -> dict | None:
    """As `score_source`, of a model that is loaded."""
    import numpy as np
    import torch

    from cluster.data.rows import TokenRows
    from model.objectives.masked_diffusion import likelihood_bound
    from model.objectives.next_token import Batch, next_token

    causal = decoder.config.causal
    rows = TokenRows(tokens.path(), config.seq_len or decoder.config.max_seq_len, ahead=int(causal))
    counts = rows.unigram_counts(tokenizer.vocab_size).astype(np.float64) + 1.0
    unigram = np.log(counts / counts.sum())
    nats = unigram_nats = variance = 0.0
    n_tokens = n_rows = 0
    limit = math.ceil(config.validation_mb * 2**20)  # one document at least
    with torch.no_grad():
        for arrays in rows.validation(source, max_bytes=limit):
            batch = Batch(*(torch.from_numpy(a) for a in arrays))
            if causal:
                nats += float(next_token(decoder, batch)[0])
            else:
                numbers = n_rows + torch.arange(len(arrays.tokens))
                bounds, variances = likelihood_bound(decoder, batch, numbers, config.bound_samples, config.seed)
                nats, variance = nats + float(bounds.sum()), variance + float(variances.sum())
            targets = arrays.targets[arrays.targets >= 0]
            unigram_nats -= float(unigram[targets].sum())
            n_tokens, n_rows = n_tokens + len(targets), n_rows + len(arrays.tokens)
    documents = list(rows.validation_documents(source, max_bytes=limit))
    if not causal:
        nats += math.log(2) * sum(delta_bits(len(ids)) for ids in documents)
    text = b"".join(tokenizer.decode(ids.tolist()).encode() for ids in documents)
    n_bytes = len(text)
    if not n_bytes:
        return None
    bits = 1 / (math.log(2) * n_bytes)
    score = {
        "source": source,
        "bytes": n_bytes,
        "tokens": n_tokens,
        "bpb": nats * bits,
        "unigram_bpb": unigram_nats * bits,
        "gzip_bpb": 8 * len(gzip.compress(text, 9)) / n_bytes,
    }
    return score if causal else score | {BOUND_ERROR: math.sqrt(variance) * bits}


def delta_bits(n: int) -> int:
    """Bits of Elias's delta code of n >= 1; 2^-bits sums to 1 over all n."""
    digits = n.bit_length()
    return digits - 1 + 2 * digits.bit_length() - 1


def bpb_figure(ws: Workspace, scores: list[dict]) -> None:
    names = [score["source"] for score in scores]
    own = "model, at most" if any(BOUND_ERROR in score for score in scores) else "model"
    series = [
        {"name": label, "x": names, "y": [score[key] for score in scores]}
        for key, label in (("bpb", own), ("gzip_bpb", "gzip -9"), ("unigram_bpb", "unigram"))
    ]
    spec = {"title": f"{ws.step}: bits per byte, held out", "x_label": "source", "y_label": "bits per byte"}
    ws.events.figure(f"{ws.step}_bits_per_byte", {**spec, "kind": "bar", "series": series})
