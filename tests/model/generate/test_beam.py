"""Beam search against transformers' on the same weights, and against all texts that there are."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from small_models import SHAPES, lively, random_tokens

from model.checkpoint import save_model
from model.decoder import Decoder
from model.errors import UserError
from model.generate.by_kind import generate, stream
from model.generate.decoding import GREEDY, Decoding
from model.interop.convert import export_model

PROMPTS = [random_tokens(n, seed=n).tolist() for n in (3, 1, 11)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Any]:
    """A small Llama of ours, and the same in transformers."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("pair")
    ours = lively(SHAPES["llama"])
    save_model(ours, folder / "ours")
    export_model(folder / "ours", folder / "theirs", {"pad_token_id": 0}, {}, max_bytes=10**9)
    return ours, AutoModelForCausalLM.from_pretrained(folder / "theirs").eval()


@pytest.mark.parametrize(
    ("n", "penalty", "stops"),
    [
        (1, 1.0, ()),
        (4, 1.0, ()),
        (3, 0.0, (5, 40, 41, 42, 43)),
        (4, 1.0, tuple(range(10, 40))),
        (4, -0.7, tuple(range(10, 40))),
        (5, 2.0, tuple(range(10, 40))),
    ],
)
def test_it_is_transformers_beam_search(pair: Any, n: int, penalty: float, stops: tuple[int, ...]) -> None:
    ours, theirs = pair
    decoding = Decoding(kind=f"beam:n={n},length_penalty={penalty}", max_new_tokens=8, stops=stops)
    for prompt, completion in zip(PROMPTS, generate(ours, PROMPTS, decoding), strict=True):
        whole = [completion, *completion.others]
        given = theirs.generate(
            torch.tensor([prompt]), num_beams=n, num_return_sequences=n, do_sample=False, max_new_tokens=8,
            eos_token_id=list(stops) or None, pad_token_id=0, length_penalty=penalty, early_stopping="never",
            output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        for one, row in zip(whole, given.sequences[:, len(prompt) :].tolist(), strict=True):
            assert one.tokens == row[: len(one.tokens)]
            assert one.tokens[-1] in stops if one.finish == "stop" else len(one.tokens) == 8
        if n > 1:
            scores = [sum(one.sampled_logprobs) / len(one.tokens) ** penalty for one in whole]
            assert scores == pytest.approx(given.sequences_scores.tolist(), abs=1e-4)


def test_as_many_beams_as_texts_find_the_likeliest_of_all() -> None:
    """Every text of three tokens, scored whole."""
    ours = lively(SHAPES["llama"])
    texts = torch.tensor(list(itertools.product(range(6), repeat=3)))
    allowed = tuple(f"{token}=-inf" for token in range(6, 97))
    decoding = Decoding(kind="beam:n=36,length_penalty=0", max_new_tokens=3, logit_bias=allowed)
    (found,) = generate(ours, [[9, 50]], decoding)
    rows = torch.cat((torch.tensor([[9, 50]]).expand(len(texts), -1), texts), 1)
    with torch.no_grad():
        logprobs = ours.logits(ours(rows)[0])[:, 1:-1, :6].log_softmax(-1)
    totals = logprobs.gather(2, texts[..., None]).squeeze(2).sum(1)
    order = totals.argsort(descending=True)
    assert [one.tokens for one in (found, *found.others)] == texts[order[:36]].tolist()
    assert sum(found.sampled_logprobs) == pytest.approx(float(totals.max()), abs=1e-4)


def test_one_beam_is_greedy_and_its_figures_are_the_model_s(causal_model: Decoder) -> None:
    """Of every mixer: its state is parted and doubled."""
    decoding = Decoding(max_new_tokens=6, temperature=0.0, top_logprobs=2)
    for kind, rows in (("beam:n=1", 1), ("beam:n=3", 3)):
        found = generate(causal_model, PROMPTS, Decoding(kind=kind, max_new_tokens=6, top_logprobs=2))
        for prompt, one, greedy in zip(PROMPTS, found, generate(causal_model, PROMPTS, decoding), strict=True):
            assert len(one.others) == rows - 1 and len(one.top) == 6
            text = torch.tensor([prompt + one.tokens])
            with torch.no_grad():
                own = causal_model.logits(causal_model(text)[0])[0].log_softmax(-1)
            expected = [float(own[len(prompt) - 1 + i, token]) for i, token in enumerate(one.tokens)]
            assert one.logprobs == pytest.approx(expected, abs=1e-3)
            if rows == 1:
                assert one.tokens == greedy.tokens


def test_a_beam_ends_where_the_context_does() -> None:
    model = lively(SHAPES["llama"])
    for length, tokens in ((60, 5), (64, 1)):
        (one,) = generate(model, [[1] * length], Decoding(kind="beam:n=2", max_new_tokens=20))
        assert len(one.tokens) == tokens and one.finish == "length"
    assert [t.id for t in stream(model, [1] * 60, Decoding(kind="beam:n=2"))] == generate(
        model, [[1] * 60], Decoding(kind="beam:n=2")
    )[0].tokens


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("beam:n=0", "decoding = 'beam': n = 0 must be at least 1"),
        ("beam:m=2", "has no option 'm': it has n, length_penalty"),
        ("beam:n=two", "n = 'two' must be a whole number"),
    ],
)
def test_what_a_beam_cannot_be_is_refused(kind: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        Decoding(kind=kind)
    assert said in str(error.value)


def test_a_diffusion_model_has_no_beams() -> None:
    with pytest.raises(UserError, match="a diffusion model doesn't have"):
        generate(lively(SHAPES["llama"].__class__(vocab_size=97, d_model=32, n_layers=1, n_heads=2, causal=False)),
                 [[1]], Decoding(kind="beam"))  # fmt: skip
    assert GREEDY.method is None
