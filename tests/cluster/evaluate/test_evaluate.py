"""Scores: bits per byte and multiple choice against a computation written out here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_model import make_model

from cluster.data.tokenizer.chat import render_prompt
from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.evaluate import evaluate
from cluster.evaluate.bits import delta_bits, summarise
from cluster.evaluate.config import EvaluateConfig, TaskConfig
from cluster.evaluate.tasks import score_answers, score_choices
from model.checkpoint import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), max_seq_len=96)


def test_the_mean_over_sources_is_by_bytes() -> None:
    scores = [
        {"source": "a", "bytes": 300, "bpb": 1.0, "unigram_bpb": 2.0, "gzip_bpb": 3.0},
        {"source": "b", "bytes": 100, "bpb": 2.0, "unigram_bpb": 4.0, "gzip_bpb": 3.0},
    ]
    metrics = summarise(scores)
    assert metrics["bpb"] == 1.25 and metrics["unigram_bpb"] == 2.5 and metrics["gzip_bpb"] == 3.0
    assert metrics["bpb/b"] == 2.0


def test_choices_are_ranked_by_log_probability_per_byte(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(folder), Tokenizer(folder)
    messages = [{"role": "user", "content": "What is two plus three?"}]
    choices = ["five", "a dog that jumps over", "§"]
    rates = []
    for choice in choices:  # one row at a time, dense logits
        prompt = render_prompt(tokenizer, messages)
        ids = prompt + tokenizer.encode(choice) + [tokenizer.end_id]
        with torch.no_grad():
            logprobs = model.logits(model(torch.tensor([ids]))[0])[0].log_softmax(-1)
        total = sum(float(logprobs[i - 1, ids[i]]) for i in range(len(prompt), len(ids)))
        rates.append(total / len(choice.encode()))
    best = rates.index(max(rates))
    path = tmp_path / "items.jsonl"
    items = [{"messages": messages, "choices": choices, "answer": answer} for answer in range(3)]
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    task = TaskConfig(name="t", kind="choice", data=str(path))
    given = score_choices(model, tokenizer, task, EvaluateConfig())
    assert given == [float(answer == best) for answer in range(3)]


@pytest.mark.parametrize("causal", [True, False])
def test_choices_are_weighed_by_their_utf_8_bytes_not_by_their_characters(tmp_path: Path, causal: bool) -> None:
    """Every token is as likely, so that per byte the choice of fewest tokens a byte is best, and per character another.

    "ⅣⅣⅣⅣ" are 12 bytes of a token each and 4 characters, and an end.
    """
    model, tokenizer = load_model(make_model(tmp_path, causal=causal)), Tokenizer(tmp_path)
    with torch.no_grad():
        model.embedding.weight.zero_()  # logits are all 0
    choices = ["ⅣⅣⅣⅣ", "zq"]
    tokens = [len(tokenizer.encode(choice)) + 1 for choice in choices]
    per_byte = [-n / len(choice.encode()) for n, choice in zip(tokens, choices, strict=True)]
    per_character = [-n / len(choice) for n, choice in zip(tokens, choices, strict=True)]
    assert per_byte[0] > per_byte[1] and per_character[0] < per_character[1], "the case must tell them apart"
    path = tmp_path / "items.jsonl"
    item = {"messages": [{"role": "user", "content": "Four?"}], "choices": choices}
    path.write_text("".join(json.dumps(item | {"answer": answer}) + "\n" for answer in (0, 1)), encoding="utf-8")
    task = TaskConfig(name="t", kind="choice", data=str(path))
    assert score_choices(model, tokenizer, task, EvaluateConfig()) == [1.0, 0.0]


def test_choices_are_ranked_by_the_bound_if_the_model_fills_in(tmp_path: Path) -> None:
    """One distribution for all places: the bound is the sum over the choice's tokens, the prompt's left out."""
    model, tokenizer = load_model(make_model(tmp_path, causal=False, norm="layernorm", bias=True)), Tokenizer(tmp_path)
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.normal_(std=20.0, generator=torch.Generator().manual_seed(0))
        logp = model.logits(model.norm.bias)[:-1].log_softmax(-1)
    choices = ["five", "a dog that jumps over", "the mind", "first + second"]
    for form in ({"prompt": "What is two plus three? "}, {"messages": [{"role": "user", "content": "Why?"}]}):
        ends = [tokenizer.end_id] * ("messages" in form)
        totals = [sum(float(logp[i]) for i in [*tokenizer.encode(choice), *ends]) for choice in choices]
        rates = [total / len(choice.encode()) for total, choice in zip(totals, choices, strict=True)]
        best = rates.index(max(rates))
        path = tmp_path / "items.jsonl"
        path.write_text(
            "".join(json.dumps({**form, "choices": choices, "answer": a}) + "\n" for a in range(4)), encoding="utf-8"
        )
        task = TaskConfig(name="t", kind="choice", data=str(path))
        assert score_choices(model, tokenizer, task, EvaluateConfig()) == [float(a == best) for a in range(4)]


def test_bits_per_byte_equal_a_plain_sum_over_each_document(folder: Path) -> None:
    from cluster.data.rows import RowBatch, batches_of, document_windows
    from model.objectives.next_token import Batch, next_token

    model, tokenizer = load_model(folder), Tokenizer(folder)
    texts = ["The quick brown fox.", "def add(first, second):\n    return first", "Reading is to the mind."]
    documents = [torch.tensor(tokenizer.encode(text, bos=True, eos=True)).numpy() for text in texts]
    expected = 0.0
    for ids in documents:  # each alone
        with torch.no_grad():
            logprobs = model.logits(model(torch.tensor(ids[None]))[0])[0].log_softmax(-1)
        expected -= sum(float(logprobs[i - 1, ids[i]]) for i in range(1, len(ids)))
    windows = (w for ids in documents for w in document_windows(ids, 96))
    total = 0.0
    with torch.no_grad():
        for arrays in batches_of(windows, 8, 96, tokenizer.pad_id):
            assert isinstance(arrays, RowBatch)
            total += float(next_token(model, Batch(*(torch.from_numpy(a) for a in arrays)))[0])
    assert math.isclose(total, expected, rel_tol=1e-5)


def test_an_answer_without_an_end_scores_nothing(folder: Path) -> None:
    model, tokenizer = load_model(folder), Tokenizer(folder)
    task = TaskConfig(name="t", kind="generate", data="generated://arithmetic?n=4&digits=1", max_new_tokens=2)
    assert score_answers(model, tokenizer, task, EvaluateConfig(), load_model) == [0.0] * 4


def test_a_bound_has_a_standard_error_beside_it() -> None:
    scores = [
        {"source": "a", "bytes": 300, "bpb": 1.0, "unigram_bpb": 2.0, "gzip_bpb": 3.0, "bpb_bound_error": 0.04},
        {"source": "b", "bytes": 100, "bpb": 2.0, "unigram_bpb": 4.0, "gzip_bpb": 3.0, "bpb_bound_error": 0.16},
    ]
    metrics = summarise(scores)
    assert metrics["bpb_bound_error/b"] == 0.16
    assert metrics["bpb_bound_error"] == pytest.approx(math.sqrt(12**2 + 16**2) / 400)


def test_the_code_of_a_length_is_elias_delta_s() -> None:
    assert [delta_bits(n) for n in (1, 2, 3, 4, 7, 8, 15, 16, 31, 32)] == [1, 4, 4, 5, 5, 8, 8, 9, 9, 10]
    kraft = sum(2.0 ** -delta_bits(n) for n in range(1, 1 << 16))
    assert 0.9 < kraft < 1


def test_what_each_part_measures_is_kept_as_what_it_is_whichever_ends_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"sources": {"a": {}, "b": {}, "c": {}}}), encoding="utf-8")
    task = {"name": "sums", "kind": "generate", "data": "generated://arithmetic?n=2"}
    sampled = [{"prompt": "Once", "completion": "upon"}]
    scores = [
        {"source": s, "bytes": 10, "bpb": b, "unigram_bpb": 3.0, "gzip_bpb": 2.0} for s, b in (("a", 1), ("c", 2))
    ]
    ended = [(4, sampled), (2, scores[1]), (3, {"sums/accuracy": 0.5}), (1, None), (0, scores[0])]
    monkeypatch.setattr(evaluate, "gather", lambda calls, check: ended)
    monkeypatch.setattr(evaluate, "stop_check", lambda ws: None)
    tables: list[Any] = []
    events = SimpleNamespace(metrics=lambda *_: None, figure=lambda *_: None, table=lambda *given: tables.append(given))
    ws: Any = SimpleNamespace(
        config=EvaluateConfig.model_validate({"tasks": [task]}), out=tmp_path, events=events, step="evaluate",
        inputs={"model": None, "tokens": SimpleNamespace(path=lambda: tmp_path)}, progress=lambda *_: None,
    )  # fmt: skip
    summary = evaluate.run_evaluate(ws)
    assert summary.metrics["bpb"] == 1.5 and summary.metrics["bpb/c"] == 2 and summary.metrics["sums/accuracy"] == 0.5
    assert "bpb/b" in summary.not_measured and "bpb/b" not in summary.metrics
    assert json.loads((tmp_path / "samples.json").read_text(encoding="utf-8")) == sampled
    assert tables == [("samples", ["prompt", "completion"], [["Once", "upon"]])]
