"""Contrastive decoding and DoLa against a loop without state or batch, with numpy's and scipy's mathematics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, softmax
from small_models import SHAPES, lively, random_tokens

from model.decoder import Decoder
from model.errors import UserError
from model.generate.by_kind import generate, stream
from model.generate.decoding import Decoding
from model.generate.dola import divergence
from model.generate.method import Tools

PROMPTS = [random_tokens(n, seed=n).tolist() for n in (3, 1, 9)]
STOPS = tuple(range(8))
GREEDY = Decoding(temperature=0.0, max_new_tokens=12, stops=STOPS)


@torch.no_grad()
def logits_of(model: Decoder, text: list[int]) -> np.ndarray:
    return model.logits(model(torch.tensor([text]))[0])[0, -1].double().numpy()


def naive(prompt: list[int], scores: Any) -> list[int]:
    """The token of the highest score, one at a time."""
    text = list(prompt)
    while len(text) - len(prompt) < 12:
        text.append(int(np.argmax(scores(text))))
        if text[-1] in STOPS:
            break
    return text[len(prompt) :]


def contrasted(expert: np.ndarray, amateur: np.ndarray, alpha: float) -> np.ndarray:
    p = softmax(expert)
    return np.where(p >= alpha * p.max(), log_softmax(expert) - log_softmax(amateur), -np.inf)


def test_greedy_is_the_highest_score_of_the_plausible_tokens(causal_model: Decoder) -> None:
    """An expert of every kind, and an amateur of another kind and another width."""
    highest(causal_model, 0.02)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_token_is_plausible_from_a_share_of_the_highest_probability_on(alpha: float) -> None:
    highest(lively(SHAPES["llama"]), alpha)


def highest(expert: Decoder, alpha: float) -> None:
    amateur = lively(replace(SHAPES["griffin"], d_model=48, n_heads=4), seed=5)
    kind = f"contrastive:amateur=small,alpha={alpha},amateur_temperature=0.7"
    tools = Tools(load={"small": amateur}.__getitem__)
    found = generate(expert, PROMPTS, replace(GREEDY, kind=kind), tools=tools)
    for prompt, one in zip(PROMPTS, found, strict=True):
        expected = naive(
            prompt, lambda text: contrasted(logits_of(expert, text), logits_of(amateur, text) / 0.7, alpha)
        )
        assert one.tokens == expected
    if alpha == 1:
        plain = generate(expert, PROMPTS, GREEDY)
        assert [one.tokens for one in found] == [one.tokens for one in plain]


def test_draws_are_of_the_scores_softmax() -> None:
    expert, amateur = lively(SHAPES["llama"]), lively(SHAPES["llama"], seed=3)
    n, prompt = 20_000, [50, 60]
    decoding = Decoding(kind="contrastive:amateur=a,alpha=0.05", max_new_tokens=1)
    drawn = generate(expert, [prompt] * n, decoding, tools=Tools(load=lambda name: amateur))
    expected = n * softmax(contrasted(logits_of(expert, prompt), logits_of(amateur, prompt), 0.05))
    counts = np.bincount([one.tokens[0] for one in drawn], minlength=97)
    assert not counts[expected == 0].any() and (expected > 5).sum() > 4
    often = expected > 5
    chi2 = ((counts - expected)[often] ** 2 / expected[often]).sum()
    assert chi2 < often.sum() + 6 * np.sqrt(2 * often.sum())
    assert drawn[0].logprobs[0] == pytest.approx(np.log(expected[drawn[0].tokens[0]] / n), abs=1e-3)


@pytest.mark.parametrize(
    ("options", "candidates"),
    [("layers=lower", [1, 2]), ("layers=upper", [3]), ("layer=2", [2])],
)
@pytest.mark.parametrize("shape", ["llama", "mamba2-hybrid"])
def test_dola_contrasts_with_the_layer_that_is_farthest(shape: str, options: str, candidates: list[int]) -> None:
    model = lively(replace(SHAPES[shape], n_layers=4))

    @torch.no_grad()
    def scores(text: list[int]) -> np.ndarray:
        """The early layers' distributions by models that end there."""
        own, best = logits_of(model, text), None
        for layer in candidates:
            early = lively(replace(SHAPES[shape], n_layers=layer))
            early.load_state_dict(model.state_dict(), strict=False)
            q = logits_of(early, text)
            far = jensenshannon(softmax(own), softmax(q)) ** 2
            best = max(best or (-1.0, q), (far, q), key=lambda one: one[0])
        assert best is not None
        return contrasted(own, best[1], 0.3)

    found = generate(model, PROMPTS, replace(GREEDY, kind=f"dola:{options},alpha=0.3"))
    for prompt, one in zip(PROMPTS, found, strict=True):
        assert one.tokens == naive(prompt, scores)
    streamed = [t.id for t in stream(model, PROMPTS[0], replace(GREEDY, kind=f"dola:{options},alpha=0.3"))]
    assert streamed == found[0].tokens


def test_the_divergence_is_jensen_and_shannon_s() -> None:
    one, other = torch.randn(2, 5, 30, generator=torch.Generator().manual_seed(0)) * 3
    expected = jensenshannon(one.softmax(-1).numpy(), other.softmax(-1).numpy(), axis=1) ** 2
    assert divergence(one, other).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("contrastive", "amateur = '' must be another model"),
        ("contrastive:amateur=x,alpha=0", "alpha = 0.0 must be above 0 and at most 1"),
        ("contrastive:amateur=x,alpha=1.5", "alpha = 1.5"),
        ("dola:layers=middle", "layers = 'middle' is not one of 'lower', 'upper'"),
        ("dola:layer=-1", "layer = -1 must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused(kind: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        Decoding(kind=kind)
    assert said in str(error.value)


def test_what_does_not_fit_the_model_is_refused() -> None:
    model = lively(SHAPES["llama"])
    other = lively(replace(SHAPES["llama"], vocab_size=98))
    with pytest.raises(UserError, match="amateur = 'x' has 98 tokens, and the model has 97"):
        generate(model, PROMPTS, Decoding(kind="contrastive:amateur=x"), tools=Tools(load=lambda name: other))
    with pytest.raises(UserError, match="layer = 2, but the model has 2 layers, and 1 before its last"):
        generate(model, PROMPTS, Decoding(kind="dola:layer=2"))
    with pytest.raises(UserError, match="dola reads a next token's"):
        generate(lively(replace(SHAPES["llama"], causal=False)), PROMPTS, Decoding(kind="dola"))
