"""The engine under load: requests of every length come, go and are cancelled, and each is as if it were alone."""

import random
import threading
from dataclasses import replace

import pytest
import torch
from small_models import SHAPES, lively, random_tokens

from model.errors import UserError
from model.generate.decoding import GREEDY, Decoding
from model.generate.engine import Engine, Request, generate, stream
from model.generate.request import Handle

KINDS = [
    Decoding(),
    Decoding(temperature=0.7, top_p=0.9),
    GREEDY,
    Decoding(temperature=1.2, repetition_penalty=1.3, presence_penalty=0.5),
]
NAMES = ["llama", "window-gqa-global", "mamba2", "griffin"]
LIVELY = {name: lively(SHAPES[name]) for name in NAMES}
SYSTEM = random_tokens(20, seed=50).tolist()


@pytest.fixture(params=LIVELY.values(), ids=NAMES)
def model(request):
    return request.param


def load(count: int, seed: int = 0) -> list[Request]:
    """Of ragged lengths, with decodings of their own; some begin alike, some are the same but for their seed."""
    draw, requests = random.Random(seed), []
    for i in range(count):
        prompt = random_tokens(draw.randint(1, 30), seed=100 + i).tolist()
        if i % 4 == 1:
            prompt = SYSTEM + prompt[:6]
        elif i % 4 == 2 and i > 8:
            prompt = list(requests[i - 8].prompt)
        decoding = replace(draw.choice(KINDS), max_new_tokens=draw.randint(1, 16), stops=tuple(range(4)))
        requests.append(Request(prompt, decoding, seed=i))
    return requests


def alone(model, request: Request):
    return generate(model, [request.prompt], request.decoding, [request.seed or 0])[0]


def assert_equal(given, expected) -> None:
    assert given.tokens == expected.tokens and given.finish == expected.finish
    assert given.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert given.sampled_logprobs == pytest.approx(expected.sampled_logprobs, abs=1e-3)


def run(engine: Engine) -> None:
    while engine.step():
        pass


def held(engine: Engine) -> int:
    """Bytes of every tensor that the engine reaches and the model doesn't, each once."""
    found, seen, stack = {}, set(), [engine._batch, engine._prefilling, engine._prefixes._states]
    while stack:
        one = stack.pop()
        if id(one) in seen or one is None or isinstance(one, (int, str, bytes, float, Handle)):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            if one.dtype != torch.long:
                found[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        elif isinstance(one, dict):
            stack += one.values()
        elif isinstance(one, (list, tuple)):
            stack += one
        elif hasattr(one, "__dict__"):
            stack += vars(one).values()
    return sum(found.values())


def test_64_ragged_requests_with_cancellations_equal_each_alone(model):
    """They come in while others run; memory for about 6 of the longest; a third is cancelled, at any stage."""
    requests, draw = load(64), random.Random(1)
    memory = model.new_state(6, 46).nbytes
    engine = Engine(model, memory=memory, max_batch=9, prefill_chunk=40)
    handles: list[Handle] = []
    cancelled: set[int] = set()
    most, step = 0, 0
    while len(handles) < len(requests) or engine.step():
        step += 1
        if len(handles) < len(requests) and step % 2:
            handles += [engine.add(r) for r in requests[len(handles) : len(handles) + draw.randint(1, 8)]]
            engine.step()
        if step % 3 == 0 and len(cancelled) < 20:
            which = draw.randrange(len(handles))
            engine.cancel(handles[which])
            cancelled.add(which)
        most = max(most, held(engine))
        assert held(engine) <= memory and engine.nbytes <= memory
    assert most > memory / 2, "the case must be crowded"
    assert all(h.done.is_set() and h.error is None for h in handles) and engine.nbytes <= memory
    complete = 0
    for i, (request, handle) in enumerate(zip(requests, handles, strict=True)):
        expected = alone(model, request)
        if i in cancelled:
            assert handle.completion.tokens == expected.tokens[: len(handle.completion.tokens)]
            complete += len(handle.completion.tokens) == len(expected.tokens)
        else:
            assert_equal(handle.completion, expected)
    assert complete < len(cancelled), "the case must cut some off"


def test_a_place_is_taken_by_the_next_at_once(model):
    """With two places and lengths 12, 2, 2, … the long one's neighbours follow each other without a pause."""
    engine = Engine(model, max_batch=2)
    lengths = [12, 2, 3, 2, 3]
    handles = [engine.add(Request([5 + i], Decoding(max_new_tokens=n, temperature=0.0))) for i, n in enumerate(lengths)]
    steps = 0
    while engine.step():
        steps += 1
    assert [len(h.completion.tokens) for h in handles] == lengths
    assert steps <= 12


def test_requests_beyond_the_memory_wait_and_none_fails():
    model = LIVELY["llama"]
    engine = Engine(model, memory=model.new_state(2, 40).nbytes)
    handles = [engine.add(Request([i], Decoding(max_new_tokens=40), seed=i)) for i in range(5)]
    engine.step()
    assert [bool(h.completion.tokens) for h in handles] == [True, True, False, False, False]
    run(engine)
    for i, handle in enumerate(handles):
        assert_equal(handle.completion, alone(model, Request([i], Decoding(max_new_tokens=40), seed=i)))


def test_a_request_that_never_fits_is_refused_with_the_numbers():
    model = LIVELY["llama"]
    memory = model.new_state(1, 40).nbytes
    engine = Engine(model, memory=memory)
    with pytest.raises(UserError, match=rf"41 tokens.* needs {model.new_state(1, 41).nbytes:,} bytes.* has {memory:,}"):
        engine.add(Request([1, 2], Decoding(max_new_tokens=40)))
    engine.add(Request([1], Decoding(max_new_tokens=40)))
    run(engine)


def test_a_shared_prefix_is_computed_once_and_changes_nothing(model):
    """Three questions after one system prompt, four times each."""
    questions = [SYSTEM + random_tokens(n, seed=n).tolist() for n in (3, 9, 30)]
    requests = [
        Request(q, Decoding(max_new_tokens=6), seed=10 * i + j) for i, q in enumerate(questions) for j in range(4)
    ]
    engine = Engine(model, prefill_chunk=None)
    handles = [engine.add(request) for request in requests]
    run(engine)
    for request, handle in zip(requests, handles, strict=True):
        assert_equal(handle.completion, alone(model, request))
    # 16 is the last whole block of the 20 shared; of each question the last token is computed for every row.
    once = 16 + sum(len(q) - 16 - 1 for q in questions)
    assert engine.prefilled == once + len(requests)
    before = engine.prefilled
    late = engine.add(Request([*SYSTEM, 7, 8], Decoding(max_new_tokens=3)))
    run(engine)
    assert engine.prefilled == before + 6
    assert_equal(late.completion, alone(model, Request([*SYSTEM, 7, 8], Decoding(max_new_tokens=3), 0)))


def test_prefixes_of_old_weights_are_forgotten():
    model, other = lively(SHAPES["mamba2-hybrid"]), lively(SHAPES["mamba2-hybrid"], seed=5)
    engine, request = Engine(model), Request([*SYSTEM, 1], Decoding(max_new_tokens=5), 3)
    for _ in range(3):
        engine.add(request)
    run(engine)
    with torch.no_grad():
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            p.copy_(q)
    handle = engine.add(request)
    run(engine)
    assert_equal(handle.completion, alone(model, request))


def test_a_prompt_in_chunks_equals_the_whole_and_holds_nobody_up(model):
    engine = Engine(model, prefill_chunk=5)
    short = engine.add(Request([3], Decoding(max_new_tokens=30), seed=1))
    engine.step()
    long = engine.add(Request(random_tokens(40, seed=3).tolist(), Decoding(max_new_tokens=8), seed=2))
    grown = []
    while not long.completion.tokens:
        before = len(short.completion.tokens)
        engine.step()
        grown.append(len(short.completion.tokens) - before)
    assert grown == [1] * 8, "40 tokens, 5 a step, and a token of the other row each time"
    run(engine)
    for handle in (short, long):
        assert_equal(handle.completion, alone(model, replace(handle.request)))


def test_tokens_stream_to_other_threads_while_one_runs_the_engine(model):
    engine, stop = Engine(model, max_batch=3), threading.Event()
    driver = threading.Thread(target=engine.run, args=(stop,))
    driver.start()
    requests, found = load(8, seed=3), {}

    def read(i: int) -> None:
        found[i] = [token.id for token in engine.stream(engine.add(requests[i]))]

    readers = [threading.Thread(target=read, args=(i,)) for i in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    stop.set()
    driver.join(60)
    assert not driver.is_alive()
    assert found == {i: alone(model, request).tokens for i, request in enumerate(requests)}


def test_one_that_reads_no_further_frees_its_place():
    engine = Engine(LIVELY["llama"])
    handle = engine.add(Request([1], Decoding(max_new_tokens=50)))
    tokens = engine.stream(handle)
    next(tokens), next(tokens)
    engine.cancel(handle)
    assert len(list(tokens)) <= 1 and handle.done.is_set() and engine.nbytes == 0


def test_a_row_without_a_distribution_fails_alone():
    """Its own request says why; the others go on as if it had not been there."""
    model = LIVELY["llama"]
    engine = Engine(model)
    bad = Decoding(repetition_penalty=1e-45, max_new_tokens=4)
    requests = [Request([9, 8], bad), Request([3, 4], Decoding(max_new_tokens=5), 1), Request(list(range(40)), bad)]
    handles = [engine.add(request) for request in requests]
    run(engine)
    assert "repetition_penalty = 1e-45" in str(handles[2].error)
    with pytest.raises(UserError):
        list(engine.stream(handles[2]))
    assert_equal(handles[1].completion, alone(model, requests[1]))


def test_a_fault_in_the_model_reaches_everyone_who_waits():
    model = lively(SHAPES["llama"])
    engine = Engine(model, max_batch=1)
    handles = [engine.add(Request([1], Decoding(max_new_tokens=9))) for _ in range(3)]
    engine.step()
    model.forward = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.step()
    assert all(h.done.is_set() and isinstance(h.error, ZeroDivisionError) for h in handles)
    assert engine.nbytes == 0


@pytest.mark.parametrize("name", ["llama", "window-gqa-global"])
def test_int8_keys_and_values_hold_more_requests_and_give_nearly_the_same_probabilities(name):
    model = LIVELY[name]
    memory = model.new_state(4, 40).nbytes
    found = {}
    for kv_dtype in (None, torch.int8):
        engine = Engine(model, memory=memory, kv_dtype=kv_dtype)
        handles = [engine.add(Request([i], Decoding(max_new_tokens=40), i)) for i in range(12)]
        engine.step()
        found[kv_dtype] = sum(bool(h.completion.tokens) for h in handles)
        run(engine)
        for i, handle in enumerate(handles):
            text = torch.tensor([[i, *handle.completion.tokens]])
            with torch.no_grad():
                exact = model.logits(model(text)[0]).log_softmax(-1)[0, :-1].gather(1, text[0, 1:, None]).squeeze(1)
            error = (exact - torch.tensor(handle.completion.logprobs)).abs().max()
            assert error < (1e-4 if kv_dtype is None else 0.1)
    assert found[torch.int8] >= 2 * found[None]


def test_a_stream_that_is_closed_leaves_nothing_behind():
    tokens = stream(LIVELY["llama"], [1, 2], Decoding(max_new_tokens=20))
    next(tokens)
    tokens.close()
