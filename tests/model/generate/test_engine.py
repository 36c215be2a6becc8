"""Batched generation against one row, one full forward pass at a time."""

import pytest
import torch
from small_models import SHAPES, lively, random_tokens

from model.generate.engine import generate, stream
from model.generate.sampling import GREEDY, Sampling, draw, law

PROMPTS = [random_tokens(n, seed=n).tolist() for n in (3, 1, 11, 7, 4)]
SAMPLINGS = [
    GREEDY,
    Sampling(),
    Sampling(temperature=0.8, top_k=20, top_p=0.9),
    Sampling(temperature=1.2, min_p=0.05, repetition_penalty=1.3),
]
STOPS = list(range(12))


@torch.no_grad()
def naive(model, prompt, n, sampling, stops, seed):
    """No cache, no batch."""
    text, tokens, logprobs, sampled = list(prompt), [], [], []
    for step in range(n):
        hidden, _ = model(torch.tensor([text]))
        logits = model.logits(hidden[:, -1])
        seen = torch.zeros(1, model.config.vocab_size, dtype=torch.bool)
        seen[0, text] = True
        rows = law(logits, sampling, seen)
        token = int(rows.argmax() if sampling.temperature == 0 else draw(rows, torch.tensor([seed]), step))
        tokens.append(token)
        text.append(token)
        logprobs.append(float(logits.log_softmax(-1)[0, token]))
        sampled.append(float(rows[0, token]))
        if token in stops or len(text) > model.config.max_seq_len:
            break
    return tokens, logprobs, sampled


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_a_batch_equals_each_row_alone_without_a_cache(causal_model, sampling):
    given = generate(causal_model, PROMPTS, 12, sampling, STOPS, seed=100, batch_size=3)
    for i, (prompt, completion) in enumerate(zip(PROMPTS, given, strict=True)):
        tokens, logprobs, sampled = naive(causal_model, prompt, 12, sampling, STOPS, 100 + i)
        assert completion.tokens == tokens
        assert completion.logprobs == pytest.approx(logprobs, abs=1e-3)
        assert completion.sampled_logprobs == pytest.approx(sampled, abs=1e-3)
        assert completion.finish == ("stop" if tokens[-1] in STOPS else "length")


def test_a_row_does_not_depend_on_its_batch():
    model = lively(SHAPES["llama"])
    together = generate(model, PROMPTS, 10, Sampling(), STOPS, seed=[5, 6, 7, 8, 9])
    backwards = generate(model, PROMPTS[::-1], 10, Sampling(), STOPS, seed=[9, 8, 7, 6, 5])
    assert [c.tokens for c in together] == [c.tokens for c in backwards][::-1]


def test_finished_rows_leave_the_batch():
    model = lively(SHAPES["llama"])
    sizes = []
    forward = model.forward

    def spy(tokens, **given):
        sizes.append(tokens.shape[0])
        return forward(tokens, **given)

    model.forward = spy
    completions = generate(model, PROMPTS, 30, Sampling(), STOPS, seed=0)
    lengths = [len(c.tokens) for c in completions]
    assert len(set(lengths)) > 1, "the case must be uneven"
    assert sum(sizes) == 5 + sum(n - 1 for n in lengths)


def test_a_stream_is_the_completion_token_by_token():
    model = lively(SHAPES["gqa-qk-norm"])
    for sampling in SAMPLINGS:
        whole = generate(model, PROMPTS[:1], 12, sampling, STOPS, seed=4)[0]
        streamed = list(stream(model, PROMPTS[0], 12, sampling, STOPS, seed=4))
        assert [t.id for t in streamed] == whole.tokens
        assert [t.logprob for t in streamed] == pytest.approx(whole.logprobs, abs=1e-4)


def test_other_seeds_give_other_text():
    model = lively(SHAPES["llama"])
    texts = {tuple(c.tokens) for c in generate(model, [[1, 2]] * 8, 10, Sampling())}
    assert len(texts) == 8


def test_a_row_that_fills_the_context_ends_there():
    model = lively(SHAPES["gpt2"])
    completions = generate(model, [[1] * 60, [2] * 64, [3] * 5], 20)
    assert [len(c.tokens) for c in completions] == [5, 1, 20]
    assert all(c.finish == "length" for c in completions)


def test_nothing_to_do_is_done():
    model = lively(SHAPES["llama"])
    assert generate(model, [], 5) == []
    assert generate(model, [[1]], 0)[0].tokens == []


@pytest.mark.parametrize(
    ("prompts", "seed", "message"),
    [
        ([[1], []], 0, "prompt 1 is empty"),
        ([[97]], 0, "outside the vocabulary"),
        ([[1] * 65], 0, "max_seq_len is 64"),
        ([[1]], [1, 2], "2 seeds for 1 prompts"),
    ],
)
def test_impossible_prompts_are_refused(prompts, seed, message):
    with pytest.raises(ValueError, match=message):
        generate(lively(SHAPES["llama"]), prompts, 3, seed=seed)
