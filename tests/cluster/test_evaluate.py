"""Scores: bits per byte and multiple choice against a computation written out here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_model import make_model

from cluster.data.chat import render_prompt
from cluster.data.tokenizer import Tokenizer
from cluster.evaluate import TaskConfig, summarise
from cluster.evaluate_tasks import score_answers, score_choices
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
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    task = TaskConfig(name="t", kind="choice", data=str(path))
    assert score_choices(model, tokenizer, task) == [float(answer == best) for answer in range(3)]


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
    assert score_answers(model, tokenizer, task) == [0.0] * 4
