"""What is asked of the model, and what is made of its answers: stops, ends, order, long prompts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_model import make_model

from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.errors import UserError
from cluster.evaluate.config import EvaluateConfig, TaskConfig
from cluster.evaluate.tasks import sample, score_answers, score_choices
from model.checkpoint import load_model
from model.generate.decoding import Decoding
from model.generate.engine import Completion
from model.objectives import logprobs


def no_other(name: str) -> Any:
    pytest.fail(f"{name} is loaded")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), max_seq_len=96)


def test_an_answer_is_verified_up_to_its_end_and_one_without_an_end_is_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_model(folder), Tokenizer(folder)
    path = tmp_path / "items.jsonl"
    item = {"prompt": "2 + 3 = ", "answer": "5", "verifier": "exact"}
    path.write_text(f"{json.dumps(item)}\n" * 4, encoding="utf-8")
    five, end = tokenizer.encode("5"), [tokenizer.end_id]
    asked: list[Decoding] = []

    def generate(model: Any, prompts: Any, decoding: Decoding, tools: Any) -> list[Completion]:
        asked.append(decoding)
        return [
            Completion([*five, *end], finish="stop"),
            Completion(five, finish="length"),
            Completion(tokenizer.encode("5\n\nand"), finish="length"),
            Completion([*tokenizer.encode("6"), *end], finish="stop"),
        ]

    monkeypatch.setattr("model.generate.by_kind.generate", generate)
    given = {"name": "t", "kind": "generate", "data": str(path)}
    plain, stopped = (TaskConfig.model_validate(given | more) for more in ({}, {"decoding": {"stops": ["\n\n"]}}))
    assert score_answers(model, tokenizer, plain, EvaluateConfig(), no_other) == [1.0, 0.0, 0.0, 0.0]
    assert score_answers(model, tokenizer, stopped, EvaluateConfig(), no_other) == [1.0, 0.0, 1.0, 0.0]
    ends = (tokenizer.end_id, tokenizer.eos_id)
    assert asked == [Decoding(temperature=0.0, stops=ends)] * 2


def test_a_choice_is_scored_whole_up_to_the_context_and_refused_beyond_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, scored = load_model(folder), Tokenizer(folder), []
    sequence_logprobs = logprobs.sequence_logprobs

    def spy(decoder: Any, tokens_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        scored.extend(zip(tokens_BT, mask_BT, strict=True))
        return sequence_logprobs(decoder, tokens_BT, mask_BT)

    monkeypatch.setattr(logprobs, "sequence_logprobs", spy)
    choices = ["x" * 20, "y" * 20]
    before = "z" * (96 - 1 - 20)  # bos, and a byte a token
    assert len(tokenizer.encode(before + choices[1], bos=True)) == 96
    path = tmp_path / "items.jsonl"
    task = TaskConfig(name="t", kind="choice", data=str(path))
    item = {"prompt": before, "choices": choices, "answer": 0}
    path.write_text(json.dumps(item), encoding="utf-8")
    score_choices(model, tokenizer, task, EvaluateConfig())
    for (tokens, mask), choice in zip(scored, choices, strict=True):
        own = tokenizer.encode(choice)
        assert tokens.tolist() == [*tokenizer.encode(before, bos=True), *own] and tokens[mask].tolist() == own

    longer = item | {"choices": ["x", "y" * 21]}
    path.write_text(f"{json.dumps(item)}\n{json.dumps(longer)}", encoding="utf-8")
    with pytest.raises(UserError, match=r"'t': .*items.jsonl:2: the prompt and choice 1 have 97 tokens, .* is 96"):
        score_choices(model, tokenizer, task, EvaluateConfig())


def test_the_end_of_an_answer_counts_among_its_tokens(tmp_path: Path) -> None:
    """All tokens are alike, so that without the end the two choices would tie, and the first be taken."""
    folder = make_model(tmp_path)
    model, tokenizer = load_model(folder), Tokenizer(folder)
    with torch.no_grad():
        model.embedding.weight.zero_()
    choices = ["ⅣⅣ", "ⅣⅣⅣⅣ"]
    assert 2 * len(tokenizer.encode(choices[0])) == len(tokenizer.encode(choices[1]))
    path = tmp_path / "items.jsonl"
    item = {"messages": [{"role": "user", "content": "?"}], "choices": choices, "answer": 1}
    path.write_text(json.dumps(item), encoding="utf-8")
    task = TaskConfig(name="t", kind="choice", data=str(path))
    assert score_choices(model, tokenizer, task, EvaluateConfig()) == [1.0]


def test_samples_are_the_prompts_then_the_questions_and_a_causal_model_ignores_unmasking(folder: Path) -> None:
    given = {"prompts": ("The quick", "def"), "questions": ("Why?",), "sample_tokens": 6}
    plain = sample(SimpleNamespace(path=lambda: folder), EvaluateConfig.model_validate(given))  # type: ignore[arg-type]
    assert [s["prompt"] for s in plain] == ["The quick", "def", "Why?"]
    unmasked = EvaluateConfig.model_validate(given | {"unmasking": {"steps": 2}})
    assert sample(SimpleNamespace(path=lambda: folder), unmasked) == plain  # type: ignore[arg-type]
    held = EvaluateConfig.model_validate(given | {"decoding": {"repetition_penalty": 5.0, "top_k": 2}})
    assert sample(SimpleNamespace(path=lambda: folder), held) != plain  # type: ignore[arg-type]
    assert sample(SimpleNamespace(path=lambda: folder), EvaluateConfig()) == []  # type: ignore[arg-type]


def test_self_consistency_votes_with_the_answers_as_the_verifier_reads_them(folder: Path, tmp_path: Path) -> None:
    """A model whose chains differ; the winner is counted anew from the chains that it hands back."""
    from cluster.serve.stops import said
    from cluster.verify.answers import answer_of
    from model.generate import by_kind

    model, tokenizer, path = load_model(folder), Tokenizer(folder), tmp_path / "items.jsonl"
    item = {"prompt": "2 + 3 = ", "answer": "5", "verifier": "exact"}
    path.write_text(f"{json.dumps(item)}\n" * 2, encoding="utf-8")
    asked = {"kind": "self_consistency", "n": 6, "stops": ["e", "1"], "max_new_tokens": 30, "temperature": 1.5}
    task = TaskConfig.model_validate({"name": "t", "kind": "generate", "data": str(path), "decoding": asked})
    config, given = EvaluateConfig(), []
    with pytest.MonkeyPatch.context() as patch:
        real = by_kind.generate
        patch.setattr(by_kind, "generate", lambda *a, **k: given.extend(real(*a, **k)) or given)
        scores = score_answers(model, tokenizer, task, config, no_other)
    decoding = config.answering(task)
    for one, score in zip(given, scores, strict=True):
        chains = [one, *one.others]
        texts = [said(tokenizer, c.tokens, decoding, False)[0] for c in chains if c.finish == "stop"]
        votes = [answer_of(text, "text") for text in texts if text.strip()]
        assert votes and max(map(votes.count, votes)) == votes.count(answer_of(texts[0], "text"))
        assert score == float(texts[0].strip() == "5")
