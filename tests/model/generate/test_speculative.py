"""Speculative decoding changes no text's law: greedy token for token, and what is drawn by chi-square.

Models are random, in fp32: no two logits tie within rounding in the texts here; where they did, a step over several
tokens could choose the other one.
"""

import copy
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from small_models import SHAPES, TWO_WAY, lively, random_tokens

from model.decoder import Decoder
from model.errors import UserError
from model.generate.by_kind import generate, stream
from model.generate.decoding import Decoding
from model.generate.drafts import NGrams
from model.generate.history import History
from model.generate.method import Tools
from model.generate.rounds import InRounds, Text
from model.generate.sampling import distribution, draw, uniform
from model.generate.speculative import Speculative, adapted, verify

PROMPTS = [random_tokens(n, seed=n).tolist() for n in (3, 1, 11, 7)] + [[5, 6, 7, 5, 6, 7, 5, 6]]
STOPS = tuple(range(6))
DRAWS = 100_000
WAYS = [
    Decoding(),
    Decoding(temperature=0.7, top_k=20, top_p=0.9, repetition_penalty=1.2),
    Decoding(temperature=1.4, temperature_schedule="linear:to=0.4,over=8", min_p=0.02, frequency_penalty=0.4),
    Decoding(typical_p=0.9, logit_bias=("3=2.0", "9=-inf"), min_new_tokens=5, presence_penalty=0.5, top_logprobs=2),
]


def near(model: Decoder, noise: float = 0.02) -> Decoder:
    """One that guesses right now and then."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return other


def beside(draft: Decoder, **more) -> Tools:
    return Tools(load=lambda name: {"small": draft}[name], **more)


def laws(count: int, seed: int, zeros: int = 0) -> list[torch.Tensor]:
    """Log-probabilities of p and q, `count` pairs on 10 tokens; some of each are impossible."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(2):
        logits = 1.5 * torch.randn(count, 10, generator=generator)
        for row in logits:
            row[torch.randperm(10, generator=generator)[:zeros]] = float("-inf")
        made.append(logits.log_softmax(-1))
    return made


def judged(logp: torch.Tensor, logq: torch.Tensor, n: int = DRAWS) -> tuple[torch.Tensor, torch.Tensor]:
    """(accepted, token) of so many independent guesses of one pair of laws."""
    p, q, seeds = logp.expand(n, -1), logq.expand(n, -1), torch.arange(n)
    guess = draw(q, seeds, 2)
    accepted, rest = verify(p, q, guess, uniform(seeds, 0, 1))
    return accepted, torch.where(accepted, guess, draw(rest, seeds, 0))


@pytest.mark.parametrize("zeros", [0, 4])
def test_what_comes_of_a_judged_guess_has_the_law_of_the_model(zeros: int) -> None:
    for p, q in zip(*laws(4, seed=zeros, zeros=zeros), strict=True):
        accepted, token = judged(p, q)
        counts, expected = token.bincount(minlength=10).double(), p.double().exp() * DRAWS
        assert counts[expected == 0].sum() == 0
        possible = expected > 0
        scaled = expected[possible] * (DRAWS / expected[possible].sum())
        assert chisquare(counts[possible].numpy(), scaled.numpy()).pvalue > 1e-3
        # A guess is accepted as often as the two laws overlap.
        overlap = float(torch.minimum(p.exp(), q.exp()).sum())
        assert float(accepted.double().mean()) == pytest.approx(overlap, abs=4 * (0.25 / DRAWS) ** 0.5)


def test_a_guess_of_the_same_law_is_always_accepted_and_one_of_another_support_never() -> None:
    (p,), (q,) = laws(1, seed=9)
    assert bool(judged(p, p)[0].all())
    apart = torch.arange(10) < 5
    p, q = p.masked_fill(apart, float("-inf")).log_softmax(-1), q.masked_fill(~apart, float("-inf")).log_softmax(-1)
    accepted, token = judged(p, q)
    assert not bool(accepted.any()) and bool((token >= 5).all())


@pytest.mark.parametrize("kind", ["speculative:draft=small,k=3", "lookup:n=2,k=3"])
def test_texts_of_a_model_have_the_law_that_plain_ones_have(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 texts of two tokens from a vocabulary of 7, after temperature, top-k, a penalty and a bias."""
    monkeypatch.setattr(InRounds, "at_once", 5_000)
    config = replace(SHAPES["llama"], vocab_size=7, n_layers=1)
    model, draws, prompt = lively(config), 10_000, [1, 2, 3, 1, 2]
    options = {"temperature": 1.5, "top_k": 5, "presence_penalty": 0.8, "logit_bias": ("3=3.0",)}
    decoding = Decoding(kind=kind, max_new_tokens=3, **options)  # the bias: what the prompt suggests is likely
    tools = beside(near(model, 0.1))
    given = generate(model, [prompt] * draws, decoding, tools=tools)
    accepted, drafted = (sum(getattr(one, name) for one in given) for name in ("accepted", "drafted"))
    assert 0.05 * drafted < accepted < 0.95 * drafted, "the case must have both"
    history = History.begin([prompt], [0], decoding, 7, torch.device("cpu"))

    def law(text: list[int], history: History) -> torch.Tensor:
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([text]))[0][:, -1])
        return distribution(logits, decoding, history)[0].double().exp()

    first = law(prompt, history)
    expected = torch.zeros(7, 7, dtype=torch.double)
    for token in range(7):
        after = copy.deepcopy(history)
        after.take(torch.tensor([token]))
        expected[token] = first[token] * law([*prompt, token], after)
    found = torch.tensor([one.tokens[0] * 7 + one.tokens[1] for one in given]).bincount(minlength=49)
    possible = expected.flatten() > 0
    assert int(found[~possible].sum()) == 0, "what top-k leaves out never comes"
    scaled = expected.flatten()[possible] / expected.sum() * draws
    assert chisquare(found[possible].numpy(), scaled.numpy()).pvalue > 1e-3


def test_greedy_texts_are_greedy_s_own_whatever_guesses(causal_model: Decoder) -> None:
    """Of every mixer; most guesses of the far model are wrong, so that each state is set back again and again."""
    plain = Decoding(temperature=0.0, max_new_tokens=24, stops=STOPS)
    expected = generate(causal_model, PROMPTS, plain)
    wrong = right = 0
    for kind, noise in [("speculative:draft=small,k=4", 0.02), ("speculative:draft=small,k=3", 0.3), ("lookup", 0.0)]:
        given = generate(causal_model, PROMPTS, replace(plain, kind=kind), tools=beside(near(causal_model, noise)))
        for one, other in zip(given, expected, strict=True):
            assert (one.tokens, one.finish) == (other.tokens, other.finish)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
            assert one.sampled_logprobs == [0.0] * len(one.tokens)
            wrong, right = wrong + one.drafted - one.accepted, right + one.accepted
    assert wrong and right


@pytest.mark.parametrize("name", ["llama", "window", "mamba2", "mamba2-hybrid"])
def test_greedy_is_exact_for_every_number_of_guesses(name: str) -> None:
    model = lively(SHAPES[name])
    tools, plain = beside(near(model)), Decoding(temperature=0.0, max_new_tokens=20)
    prompts = [random_tokens(1 + n % 13, seed=n).tolist() for n in range(25)]
    expected = [one.tokens for one in generate(model, prompts, plain)]
    for k in range(1, 9):
        for kind in (f"speculative:draft=small,k={k}", f"lookup:n=2,k={k}"):
            given = generate(model, prompts, replace(plain, kind=kind), tools=tools)
            assert [one.tokens for one in given] == expected
            assert all(one.accepted <= one.drafted for one in given)


@pytest.mark.parametrize("name", ["llama", "window-gqa-global", "mamba2-hybrid", "griffin"])
@pytest.mark.parametrize("kind", ["speculative:draft=small,k=4", "lookup:k=3"])
def test_a_row_in_a_batch_equals_it_alone_and_says_what_the_model_says(name: str, kind: str) -> None:
    """Figures are held against one forward pass over the whole text."""
    model = lively(SHAPES[name])
    for way in WAYS:
        decoding, tools = replace(way, kind=kind, max_new_tokens=12, stops=STOPS, seed=50), beside(near(model))
        batch = generate(model, PROMPTS, decoding, tools=tools)
        for i, (prompt, one) in enumerate(zip(PROMPTS, batch, strict=True)):
            (alone,) = generate(model, [prompt], replace(decoding, seed=50 + i), tools=tools)
            assert (one.tokens, one.finish, one.drafted, one.accepted) == (
                alone.tokens, alone.finish, alone.drafted, alone.accepted
            )  # fmt: skip
            assert len(one.tokens) >= way.min_new_tokens and 9 not in one.tokens[: 12 * bool(way.logit_bias)]
            assert (one.finish == "stop") == (one.tokens[-1] in STOPS) and not set(one.tokens[:-1]) & {*STOPS}
            with torch.no_grad():
                logits = model.logits(model(torch.tensor([[*prompt, *one.tokens]]))[0])[0, len(prompt) - 1 : -1]
            history = History.begin([prompt], [0], decoding, 97, logits.device)
            for place, token in enumerate(one.tokens):
                own = logits[place].log_softmax(-1)
                law = distribution(logits[place][None], decoding, history)[0]
                assert one.logprobs[place] == pytest.approx(float(own[token]), abs=1e-3)
                assert one.sampled_logprobs[place] == pytest.approx(float(law[token]), abs=1e-3)
                if way.top_logprobs:
                    assert [id_ for id_, _ in one.top[place]] == own.topk(2).indices.tolist()
                history.take(torch.tensor([token]))


def test_streamed_tokens_are_those_of_the_whole_and_of_the_seed() -> None:
    model = lively(SHAPES["llama"])
    tools = beside(near(model))
    texts = set()
    for seed in range(4):
        decoding = Decoding(kind="speculative:draft=small", max_new_tokens=16, seed=seed)
        (whole,) = generate(model, PROMPTS[:1], decoding, tools=tools)
        tokens = list(stream(model, PROMPTS[0], decoding, tools))
        assert [token.id for token in tokens] == whole.tokens
        assert sum(token.drafted for token in tokens) == whole.drafted
        assert sum(token.accepted for token in tokens) == whole.accepted
        texts.add(tuple(whole.tokens))
    assert len(texts) == 4


def test_the_same_model_as_its_own_draft_is_always_right_and_saves_the_steps() -> None:
    model, steps = lively(SHAPES["llama"]), []
    draft = copy.deepcopy(model)
    hook = model.register_forward_pre_hook(lambda *_: steps.append(1))
    decoding = Decoding(kind="speculative:draft=small,k=4", max_new_tokens=21, temperature=0.9, top_p=0.8)
    (one,) = generate(model, [[1, 2, 3]], decoding, tools=beside(draft))
    hook.remove()
    assert one.accepted == one.drafted == 16 and len(one.tokens) == 21
    assert len(steps) == 1 + 4 + 1, "the prompt, four steps of five tokens, and the last one"


class Counted:
    """Ends a text at its sixth token, and lets no odd one come."""

    def __init__(self, heard: int = 0) -> None:
        self.heard = heard

    def allowed(self) -> torch.Tensor:
        return torch.arange(97) % 2 == 0

    def take(self, token: int) -> bool:
        assert token % 2 == 0 and self.heard < 6, "it hears of nothing after its end"
        self.heard += 1
        return self.heard == 6

    def fork(self) -> "Counted":
        return Counted(self.heard)


@pytest.mark.parametrize("kind", ["speculative:draft=small,k=4", "lookup:n=1,k=4"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_watcher_hears_of_what_stays_and_ends_a_text_among_its_guesses(kind: str, temperature: float) -> None:
    model = lively(SHAPES["window"])
    decoding = Decoding(kind=kind, max_new_tokens=12, temperature=temperature)
    given = generate(model, PROMPTS, decoding, tools=beside(near(model), watch=Counted))
    plain = generate(model, PROMPTS, replace(decoding, kind="plain"), tools=Tools(watch=Counted))
    for one, other in zip(given, plain, strict=True):
        assert len(one.tokens) == 6 and one.finish == "stop" and not any(token % 2 for token in one.tokens)
        assert temperature or one.tokens == other.tokens


def test_a_text_ends_where_the_context_does_and_a_draft_may_have_less() -> None:
    model = lively(SHAPES["gpt2"])
    short = lively(replace(SHAPES["gpt2"], max_seq_len=20), seed=1)
    prompts = [[1] * n for n in (3, 18, 40, 60, 64)]
    plain = Decoding(max_new_tokens=12, temperature=0.0)
    for kind in ("speculative:draft=small,k=5", "lookup:k=5"):
        given = generate(model, prompts, replace(plain, kind=kind), tools=beside(short))
        assert [len(one.tokens) for one in given] == [12, 12, 12, 5, 1]
        assert [one.tokens for one in given] == [one.tokens for one in generate(model, prompts, plain)]
        if "draft" in kind:
            assert [one.drafted > 0 for one in given] == [True, True, False, False, False]


def test_a_text_is_looked_up_where_its_longest_run_last_stood() -> None:
    texts = [Text([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 0, 9), Text([4, 4], 0, 9), Text([1, 2], 0, 9)]
    drafter = NGrams(texts, 3)
    history = History(torch.zeros(3), torch.zeros(3))
    assert drafter.propose(texts, [4, 3, 3], history).tokens == [[9, 2, 3, 8], [4, 4, 4], []]
    texts[0].ids += [8, 1]
    assert drafter.propose(texts, [2, 0, 3], history).tokens == [[2, 3], [], []]


def test_guesses_grow_while_all_are_accepted_and_shrink_while_not() -> None:
    assert [adapted(k, k, k, 6) for k in (1, 3, 5, 6)] == [3, 5, 6, 6]
    assert [adapted(k, k, k - 1, 6) for k in (1, 2, 6)] == [1, 1, 5]
    assert adapted(4, 0, 0, 6) == 4
    model, sizes = lively(SHAPES["llama"]), []
    hook = model.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
    decoding = Decoding(kind="speculative:draft=small,k=4", max_new_tokens=12, temperature=0.0)
    generate(model, [[1, 2, 3]], decoding, tools=beside(lively(SHAPES["llama"], seed=7)))
    hook.remove()
    assert sizes[1:5] == [5, 4, 3, 2], "a far model's guesses are wrong, and grow few"


def test_what_cannot_be_is_refused() -> None:
    for kind, said in [
        ("speculative", "speculative:draft=MODEL"),
        ("speculative:draft=x,k=0", "k = 0 must be at least 1"),
        ("lookup:n=0", "n = 0 must be at least 1"),
        ("lookup:draft=x", "has no option 'draft': it has n, k"),
    ]:
        with pytest.raises(UserError, match=said):
            Decoding(kind=kind)
    assert Speculative(draft="m").others == ("m",)
    model, decoding = lively(SHAPES["llama"]), Decoding(kind="speculative:draft=small")
    other = lively(replace(SHAPES["llama"], vocab_size=50))
    with pytest.raises(UserError, match="draft = 'small' has 50 tokens, and the model has 97"):
        generate(model, [[1]], decoding, tools=beside(other))
    two_way = lively(TWO_WAY["two-way"])
    for given, draft, kind in (
        (two_way, model, decoding.kind),
        (model, two_way, decoding.kind),
        (two_way, model, "lookup"),
    ):
        with pytest.raises(UserError, match="a diffusion model doesn't have"):
            generate(given, [[1]], Decoding(kind=kind), tools=beside(draft))
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        generate(model, [[]], Decoding(kind="lookup"))
