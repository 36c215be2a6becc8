"""What a model's context holds is measured when it is read, and named by its file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.data.examples.examples import read_choices, read_tasks
from cluster.data.examples.lengths import choice_fits, choice_ids, task_fits
from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.errors import UserError

ASKED = [{"role": "user", "content": "z" * 20}]
TASKS: list[dict[str, Any]] = [{"prompt": "z" * 20}, {"messages": ASKED}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    from tiny_model import make_model

    return Tokenizer(make_model(tmp_path_factory.mktemp("model")))


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("\n".join(json.dumps(r) for r in records), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("asked", TASKS, ids=["prompt", "messages"])
def test_a_prompt_must_leave_room_for_an_answer(tokenizer: Tokenizer, tmp_path: Path, asked: dict) -> None:
    short = {"prompt": "z", "answer": "a"}
    path = write(tmp_path / "t.jsonl", short, {**asked, "answer": "a"})
    tokens = 21 if "prompt" in asked else 24  # bos; and the two roles and an end
    assert len(read_tasks(path, fits=task_fits(tokenizer, tokens + 1))) == 2
    with pytest.raises(UserError, match=f"t.jsonl:2: the prompt has {tokens} tokens, .* is {tokens}, and nothing is"):
        read_tasks(path, fits=task_fits(tokenizer, tokens))
    assert len(read_tasks(path, limit=1, fits=task_fits(tokenizer, tokens))) == 1, "only what is used is measured"


@pytest.mark.parametrize("asked", TASKS, ids=["prompt", "messages"])
def test_each_choice_must_fit_behind_its_prompt(tokenizer: Tokenizer, tmp_path: Path, asked: dict) -> None:
    path = write(tmp_path / "c.jsonl", {**asked, "choices": ["x", "y" * 9], "answer": 0})
    tokens = max(len(choice_ids(tokenizer, asked, choice)[0]) for choice in ("x", "y" * 9))
    assert len(read_choices(path, fits=choice_fits(tokenizer, tokens))) == 1
    with pytest.raises(UserError, match=f"c.jsonl:1: the prompt and choice 1 have {tokens} tokens"):
        read_choices(path, fits=choice_fits(tokenizer, tokens - 1))


def test_what_is_made_by_code_is_measured_too(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"generated://parity\?n=3, number 1: the prompt has"):
        read_tasks("generated://parity?n=3", fits=task_fits(tokenizer, 16))


def test_a_prompt_of_no_token_at_all_is_refused(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    task_fits(tokenizer, 64)({"prompt": ""})
    monkeypatch.setattr(tokenizer, "adds_bos", False)
    for fits in (task_fits(tokenizer, 64), choice_fits(tokenizer, 64)):
        with pytest.raises(UserError, match="the prompt is empty"):
            fits({"prompt": "", "choices": ["a", "b"]})
