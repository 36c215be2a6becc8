"""Batched unmasking against one row in a loop, and what it draws against the chain rule in every order."""

import itertools
import math
from dataclasses import asdict, replace

import pytest
import torch
from small_models import SMALL, lively, random_tokens

from model.config import ModelConfig
from model.errors import UserError
from model.generate import by_kind, engine
from model.generate.decoding import GREEDY, Decoding
from model.generate.diffusion import generate, stream
from model.generate.history import History
from model.generate.sampling import distribution, draw, uniform
from model.generate.unmasking import Unmasking

CONFIG = ModelConfig(**SMALL, causal=False)
MASK = CONFIG.vocab_size - 1
PROMPTS = [random_tokens(n, vocab_size=MASK, seed=n).tolist() for n in (3, 1, 11, 7, 4)]
SAMPLINGS = [
    GREEDY,
    Decoding(),
    Decoding(temperature=1.2, top_k=20, top_p=0.9, repetition_penalty=1.3),
    Decoding(temperature_schedule="linear:to=0.3", frequency_penalty=0.8, min_new_tokens=2, top_logprobs=2),
]
UNMASKINGS = [
    Unmasking(),
    Unmasking(order="random"),
    Unmasking(steps=4),
    Unmasking(block_length=5),
    Unmasking(steps=6, block_length=4, order="random"),
]
STOPS = tuple(range(8))
SAMPLED = Decoding(max_new_tokens=20, stops=STOPS)


@torch.no_grad()
def naive(model, prompt, decoding, seed):
    """One row, one token at a time out of the full logits."""
    limit = model.config.max_seq_len
    length = min(decoding.max_new_tokens, limit - len(prompt))
    text: list[tuple[int, float, float] | None] = [None] * length
    for step, (end, total) in enumerate(decoding.passes(length)):
        canvas = [*prompt, *(MASK if t is None else t[0] for t in text)]
        logits = model.logits(model(torch.tensor([canvas]))[0])[0, len(prompt) :, :MASK]
        shown = [t for t in canvas[len(prompt) :] if t != MASK]
        counts = [torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=MASK)[None] for ids in (prompt, shown)]
        found = []
        for place in [i for i in range(end) if text[i] is None]:
            history = History(torch.tensor([seed]), torch.tensor([place]), *counts)
            row = distribution(logits[place : place + 1], decoding, history)
            number = (step + 1) * limit + place
            token = int(row.argmax() if decoding.temperature == 0 else draw(row, torch.tensor([seed]), number))
            logp = float(logits[place].log_softmax(-1)[token])
            score = logp if decoding.order == "confidence" else float(uniform(torch.tensor(seed), place))
            found.append((-score, place, (token, logp, float(row[0, token]))))
        for _, place, drawn in sorted(found)[: total - sum(t is not None for t in text)]:
            text[place] = drawn
        whole = list(itertools.takewhile(lambda t: t is not None, text))
        ends = [i for i, t in enumerate(whole) if t[0] in decoding.stops]
        if ends:
            return whole[: ends[0] + 1]
    return text


@pytest.mark.parametrize("unmasking", UNMASKINGS, ids=str)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_a_batch_equals_each_row_alone_in_a_loop(sampling, unmasking):
    model = lively(CONFIG)
    decoding = replace(sampling, max_new_tokens=13, stops=STOPS, seed=100, **asdict(unmasking))
    given = generate(model, PROMPTS, decoding, batch_size=3)
    finishes = set()
    for i, (prompt, completion) in enumerate(zip(PROMPTS, given, strict=True)):
        tokens, logprobs, sampled = zip(*naive(model, prompt, decoding, 100 + i), strict=True)
        assert completion.tokens == list(tokens)
        assert completion.logprobs == pytest.approx(logprobs, abs=1e-3)
        assert completion.sampled_logprobs == pytest.approx(sampled, abs=1e-3)
        assert completion.finish == ("stop" if tokens[-1] in STOPS else "length")
        finishes.add(completion.finish)
    assert sampling == GREEDY or "stop" in finishes, "the case must have rows that end early"


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_row_does_not_depend_on_its_batch(position):
    model = lively(ModelConfig(**SMALL, causal=False, position=position))
    prompts = [*PROMPTS, [5] * 60]  # the last leaves room for 4 tokens
    seeds = [5, 6, 7, 8, 9, 10]
    together = generate(model, prompts, SAMPLED, seeds)
    backwards = generate(model, prompts[::-1], SAMPLED, seeds[::-1], batch_size=4)
    assert [c.tokens for c in together] == [c.tokens for c in backwards][::-1]
    assert len(together[-1].tokens) <= 4


def test_every_order_s_chain_rule_is_the_distribution_of_one_random_token_a_pass():
    """Three tokens of a vocabulary of 4: 64 texts, thousands of draws."""
    model = lively(ModelConfig(vocab_size=5, d_model=16, n_layers=1, n_heads=2, max_seq_len=8, causal=False), seed=2)
    canvases = torch.tensor(list(itertools.product(range(5), repeat=3)))  # 4 is [MASK]
    with torch.no_grad():
        rows = torch.cat((torch.ones(125, 1, dtype=torch.long), canvases), 1)
        table = model.logits(model(rows)[0])[:, 1:, :4].log_softmax(-1).view(5, 5, 5, 3, 4).tolist()
    exact = torch.zeros(4, 4, 4, dtype=torch.float64)
    for text in itertools.product(range(4), repeat=3):
        for order in itertools.permutations(range(3)):
            row, logp = [4, 4, 4], 0.0
            for place in order:
                logp += table[row[0]][row[1]][row[2]][place][text[place]]
                row[place] = text[place]
            exact[text] += math.exp(logp) / 6
    assert float(exact.sum()) == pytest.approx(1)
    count = 8_000
    drawn = generate(model, [[1]] * count, Decoding(max_new_tokens=3, order="random"), batch_size=count)
    counts = torch.zeros(4, 4, 4, dtype=torch.float64)
    for completion in drawn:
        counts[tuple(completion.tokens)] += 1
    chi_square = float(((counts - count * exact).square() / (count * exact)).sum())
    assert chi_square < 110, "63 degrees of freedom: more than 110 in 1 of 5000 cases"
    independent = count * exact.sum((1, 2))[:, None, None] * exact.sum((0, 2))[:, None] * exact.sum((0, 1))
    assert float(((counts - independent).square() / independent).sum()) > 150, "the model must tie the tokens together"


def test_steps_and_blocks_are_the_passes_that_are_made():
    model, sizes = lively(CONFIG), []
    forward = model.forward

    def spy(tokens, **given):
        sizes.append((tokens == MASK).sum(1).tolist())
        return forward(tokens, **given)

    model.forward = spy
    generate(model, [[1, 2], [3]], replace(GREEDY, max_new_tokens=12, steps=4))
    assert sizes == [[12, 12], [9, 9], [6, 6], [3, 3]]
    sizes.clear()
    generate(model, [[1]], Decoding(max_new_tokens=12, steps=6, block_length=4))
    assert sizes == [[12], [10], [8], [6], [4], [2]]


def test_a_row_that_stops_leaves_the_batch():
    model, sizes = lively(CONFIG), []
    forward = model.forward

    def spy(tokens, **given):
        sizes.append(tokens.shape[0])
        return forward(tokens, **given)

    model.forward = spy
    completions = generate(model, PROMPTS, replace(SAMPLED, max_new_tokens=40, block_length=1))
    lengths = [len(c.tokens) for c in completions]
    assert len(set(lengths)) > 1, "the case must be uneven"
    assert sum(sizes) == sum(lengths)


@pytest.mark.parametrize("unmasking", UNMASKINGS, ids=str)
def test_a_stream_is_the_completion_in_order(unmasking):
    model = lively(CONFIG)
    for sampling in SAMPLINGS:
        decoding = replace(sampling, max_new_tokens=12, stops=STOPS, seed=4, **asdict(unmasking))
        whole = generate(model, PROMPTS[:1], decoding)[0]
        streamed = list(stream(model, PROMPTS[0], decoding))
        assert [t.id for t in streamed] == whole.tokens
        assert [t.logprob for t in streamed] == pytest.approx(whole.logprobs)


@pytest.mark.parametrize(
    ("unmasking", "passes"),
    [
        (Unmasking(), [(3, 1), (3, 2), (3, 3)]),
        (Unmasking(steps=2), [(3, 1), (3, 3)]),
        (Unmasking(steps=9), [(3, 1), (3, 2), (3, 3)]),
        (Unmasking(block_length=2), [(2, 1), (2, 2), (3, 3)]),
        (Unmasking(steps=1, block_length=2), [(2, 2), (3, 3)]),
    ],
    ids=str,
)
def test_passes(unmasking, passes):
    assert unmasking.passes(3) == passes
    assert unmasking.passes(0) == []


def test_the_model_s_kind_decides_how_it_is_sampled():
    causal, both = lively(ModelConfig(**SMALL)), lively(CONFIG)
    assert by_kind.generate(causal, PROMPTS, SAMPLED) == engine.generate(causal, PROMPTS, SAMPLED)
    how, seeds = replace(SAMPLED, steps=2), [7, 7, 1, 2, 3]
    assert by_kind.generate(both, PROMPTS, how, seeds) == generate(both, PROMPTS, how, seeds)
    assert list(by_kind.stream(both, [1], how)) == list(stream(both, [1], how))
    with pytest.raises(ValueError, match=r"use model\.generate\.diffusion"):
        engine.generate(both, PROMPTS)
    with pytest.raises(ValueError, match=r"use model\.generate\.engine"):
        generate(causal, PROMPTS)


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_give_no_probabilities_are_an_error_and_no_text(decoding, wrong):
    model = lively(CONFIG)
    with torch.no_grad():
        model.embedding.weight[:, 0] = wrong
    with pytest.raises(UserError, match="gives no probabilities"):
        generate(model, PROMPTS, decoding)
    with pytest.raises(UserError, match="gives no probabilities"):
        list(stream(model, PROMPTS[0], decoding))


@pytest.mark.parametrize("seed", [2**63 - 1, 2**63, 2**64 + 5, -1, -(10**30)])
def test_any_integer_is_a_seed(seed):
    model, decoding = lively(CONFIG), replace(SAMPLED, seed=seed, temperature=5.0)
    texts = [c.tokens for c in generate(model, PROMPTS[:2] * 2, decoding)]
    assert texts == [c.tokens for c in generate(model, PROMPTS[:2] * 2, decoding)]
    assert texts[0] != texts[2], "row 2 has another seed"
    assert [t.id for t in stream(model, PROMPTS[0], decoding)] == texts[0]


def test_nothing_to_do_is_done():
    model = lively(CONFIG)
    assert generate(model, []) == []


@pytest.mark.parametrize(
    ("prompts", "seeds", "message"),
    [
        ([[1], []], None, "prompt 1 is empty"),
        ([[MASK]], None, "outside the vocabulary"),
        ([[1] * 64], None, "max_seq_len is 64"),
        ([[1]], [1, 2], "2 seeds for 1 prompts"),
    ],
)
def test_impossible_prompts_are_refused(prompts, seeds, message):
    with pytest.raises(ValueError, match=message):
        generate(lively(CONFIG), prompts, GREEDY, seeds)
