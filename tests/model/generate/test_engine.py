"""Batched generation against one row, one full forward pass at a time."""

from dataclasses import replace

import pytest
import torch
from small_models import SHAPES, lively, random_tokens

from model.errors import UserError
from model.generate.decoding import GREEDY, Decoding
from model.generate.engine import generate, stream
from model.generate.history import History
from model.generate.sampling import distribution, draw

PROMPTS = [random_tokens(n, seed=n).tolist() for n in (3, 1, 11, 7, 4)]
DECODINGS = [
    GREEDY,
    Decoding(),
    Decoding(temperature=0.8, top_k=20, top_p=0.9),
    Decoding(temperature=1.2, min_p=0.05, repetition_penalty=1.3),
    Decoding(temperature=1.5, temperature_schedule="cosine:to=0.3,over=9", typical_p=0.8, frequency_penalty=0.5),
    Decoding(temperature=2.0, temperature_schedule="linear:to=0.2"),
    Decoding(presence_penalty=1.0, logit_bias=("3=4.0", "5=-inf"), min_new_tokens=4, top_logprobs=2),
]
STOPS = tuple(range(12))
SAMPLED = Decoding(max_new_tokens=10, stops=STOPS)


@torch.no_grad()
def naive(model, prompt, decoding, seed):
    """No cache, no batch."""
    text, tokens, logprobs, sampled = list(prompt), [], [], []
    for step in range(decoding.max_new_tokens):
        hidden, _ = model(torch.tensor([text]))
        logits = model.logits(hidden[:, -1])
        history = History.begin([prompt], [seed], decoding, model.config.vocab_size, logits.device)
        for token in tokens:
            history.take(torch.tensor([token]))
        rows = distribution(logits, decoding, history)
        token = int(rows.argmax() if decoding.temperature == 0 else draw(rows, torch.tensor([seed]), step))
        tokens.append(token)
        text.append(token)
        logprobs.append(float(logits.log_softmax(-1)[0, token]))
        sampled.append(float(rows[0, token]))
        if token in decoding.stops or len(text) > model.config.max_seq_len:
            break
    return tokens, logprobs, sampled


@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
def test_a_batch_equals_each_row_alone_without_a_cache(causal_model, decoding):
    decoding = replace(decoding, max_new_tokens=12, stops=STOPS, seed=100)
    given = generate(causal_model, PROMPTS, decoding, batch_size=3)
    for i, (prompt, completion) in enumerate(zip(PROMPTS, given, strict=True)):
        tokens, logprobs, sampled = naive(causal_model, prompt, decoding, 100 + i)
        assert completion.tokens == tokens
        assert completion.logprobs == pytest.approx(logprobs, abs=1e-3)
        assert completion.sampled_logprobs == pytest.approx(sampled, abs=1e-3)
        assert completion.finish == ("stop" if tokens[-1] in STOPS else "length")


def test_a_row_does_not_depend_on_its_batch():
    model = lively(SHAPES["llama"])
    together = generate(model, PROMPTS, SAMPLED, [5, 6, 7, 8, 9])
    backwards = generate(model, PROMPTS[::-1], SAMPLED, [9, 8, 7, 6, 5])
    assert [c.tokens for c in together] == [c.tokens for c in backwards][::-1]


def test_finished_rows_leave_the_batch():
    model = lively(SHAPES["llama"])
    sizes = []
    forward = model.forward

    def spy(tokens, **given):
        sizes.append(tokens.shape[0])
        return forward(tokens, **given)

    model.forward = spy
    completions = generate(model, PROMPTS, replace(SAMPLED, max_new_tokens=30))
    lengths = [len(c.tokens) for c in completions]
    assert len(set(lengths)) > 1, "the case must be uneven"
    assert sum(sizes) == 5 + sum(n - 1 for n in lengths)


def test_a_stream_is_the_completion_token_by_token():
    model = lively(SHAPES["gqa-qk-norm"])
    for drawn in DECODINGS:
        decoding = replace(drawn, max_new_tokens=12, stops=STOPS, seed=4)
        whole = generate(model, PROMPTS[:1], decoding)[0]
        streamed = list(stream(model, PROMPTS[0], decoding))
        assert [t.id for t in streamed] == whole.tokens
        assert [t.logprob for t in streamed] == pytest.approx(whole.logprobs, abs=1e-4)


def test_other_seeds_give_other_text():
    model = lively(SHAPES["llama"])
    texts = {tuple(c.tokens) for c in generate(model, [[1, 2]] * 8, replace(SAMPLED, stops=()))}
    assert len(texts) == 8


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_give_no_probabilities_are_an_error_and_no_text(decoding, wrong):
    model = lively(SHAPES["llama"])
    with torch.no_grad():
        model.embedding.weight[:, 0] = wrong
    with pytest.raises(UserError, match="gives no probabilities"):
        generate(model, PROMPTS, decoding)
    with pytest.raises(UserError, match="gives no probabilities"):
        list(stream(model, PROMPTS[0], decoding))


@pytest.mark.parametrize("seed", [2**63 - 1, 2**63, 2**64 + 5, -1, -(10**30)])
def test_any_integer_is_a_seed(seed):
    model, decoding = lively(SHAPES["llama"]), replace(SAMPLED, seed=seed, temperature=5.0)
    texts = [c.tokens for c in generate(model, PROMPTS[:2] * 2, decoding)]
    assert texts == [c.tokens for c in generate(model, PROMPTS[:2] * 2, decoding)]
    assert texts[0] != texts[2], "row 2 has another seed"
    assert [t.id for t in stream(model, PROMPTS[0], decoding)] == texts[0]


def test_numbers_that_overflow_are_an_error():
    decoding = Decoding(repetition_penalty=1e-45)
    with pytest.raises(UserError, match="repetition_penalty = 1e-45"):
        generate(lively(SHAPES["llama"]), [list(range(40))], decoding)


def test_a_row_that_fills_the_context_ends_there():
    model = lively(SHAPES["gpt2"])
    completions = generate(model, [[1] * 60, [2] * 64, [3] * 5], replace(GREEDY, max_new_tokens=20))
    assert [len(c.tokens) for c in completions] == [5, 1, 20]
    assert all(c.finish == "length" for c in completions)


def test_nothing_to_do_is_done():
    model = lively(SHAPES["llama"])
    assert generate(model, []) == []


@pytest.mark.parametrize(
    ("prompts", "seeds", "message"),
    [
        ([[1], []], None, "prompt 1 is empty"),
        ([[97]], None, "outside the vocabulary"),
        ([[3, -1]], None, "outside the vocabulary"),
        ([[1] * 65], None, "max_seq_len is 64"),
        ([[1]], [1, 2], "2 seeds for 1 prompts"),
    ],
)
def test_impossible_prompts_are_refused(prompts, seeds, message):
    with pytest.raises(ValueError, match=message):
        generate(lively(SHAPES["llama"]), prompts, GREEDY, seeds)
