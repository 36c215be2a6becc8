"""What the recipe asks of its models is looked at before any of them is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UserError
from flows.graph import graph
from flows.recipe_read import read_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny.toml"  # a context of 96
ASKED = [{"role": "user", "content": "Why?"}]
LONG = "word " * 60
MORE = "generated://arithmetic?n=80"  # enough that a tenth can be held out
TASK, PAIR = {"prompt": "2+2=", "answer": "4"}, {"messages": ASKED, "chosen": "b", "rejected": "c"}
CHAT = {"messages": [*ASKED, {"role": "assistant", "content": "b"}]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_model import make_model

    return make_model(tmp_path_factory.mktemp("model"))


def check(overrides: list[str], tokenizer: Path | None) -> None:
    for step in graph(read_recipe(str(RECIPE), overrides)):
        if step.stage.check:
            step.stage.check(step, tokenizer)


def of_task(kind: str) -> str:
    return f"evaluate.tasks=[{{name='t', kind='{kind}', data='FILE'}}]"


PAIRS = "rlhf={method='dpo', preferences=['FILE'], train={seq_len=64}}"
CASES = [
    (
        of_task("generate"),
        TASK,
        {**TASK, "prompt": LONG},
        r"\[evaluate\] task 't': .*x.jsonl:2: the prompt has",
    ),
    (
        of_task("choice"),
        {"prompt": "a", "choices": ["b", "c"], "answer": 0},
        {"prompt": "a", "choices": ["b", LONG], "answer": 0},
        r"\[evaluate\] task 't': .*x.jsonl:2: the prompt and choice 1 have",
    ),
    (
        f"rlhf.tasks=['FILE', '{MORE}']",
        TASK,
        {**TASK, "prompt": LONG},
        r"\[rlhf\] .*x.jsonl:2: the prompt has",
    ),
    ("rlhf.heldout=['FILE']", TASK, {**TASK, "prompt": LONG}, r"\[rlhf\] .*x.jsonl:2: the prompt has"),
]


@pytest.mark.parametrize(("override", "good", "long", "message"), CASES)
def test_an_example_that_the_context_does_not_hold_is_named_before_training(
    tokenizer: Path, tmp_path: Path, override: str, good: dict, long: dict, message: str
) -> None:
    file = tmp_path / "x.jsonl"
    given = [override.replace("FILE", str(file))]
    file.write_text(f"{json.dumps(good)}\n{json.dumps(good)}", encoding="utf-8")
    check(given, None)
    check(given, tokenizer)
    file.write_text(f"{json.dumps(good)}\n{json.dumps(long)}", encoding="utf-8")
    check(given, None)
    with pytest.raises(UserError, match=message):
        check(given, tokenizer)


def test_a_longer_context_counts_where_the_model_has_it_by_then(tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({**TASK, "prompt": "word " * 20}), encoding="utf-8")
    for length in (80, 200):
        given = [
            f"rlhf.tasks=['{file}', '{MORE}']",
            f"model.max_seq_len={length}",
            "evaluate.tasks=[]",
        ]
        if length == 200:
            check(given, tokenizer)
        else:
            with pytest.raises(UserError, match="is 80"):
                check(given, tokenizer)


WRONG: list[tuple[str, Any, Any, str]] = [
    (
        of_task("generate"),
        TASK,
        {**TASK, "verifier": "number", "answer": "four"},
        r"\[evaluate\] task 't': .*x.jsonl:2: ",
    ),
    (of_task("generate"), TASK, {**TASK, "verifier": None}, r"\[evaluate\] task 't': .*x.jsonl:2: "),
    ("rlhf.tasks=['FILE']", TASK, {"prompt": "a"}, r"\[rlhf\] .*x.jsonl:2: "),
    ("rlhf.heldout=['FILE']", TASK, {"prompt": "a"}, r"\[rlhf\] .*x.jsonl:2: "),
    (PAIRS, PAIR, {**PAIR, "chosen": 3}, r"\[rlhf\] .*x.jsonl:2: "),
    ("instruct.data=['FILE']", CHAT, {"messages": []}, r"\[instruct\] .*x.jsonl:2: "),
]


@pytest.mark.parametrize(("override", "good", "wrong", "message"), WRONG)
def test_a_wrong_example_is_named_before_anything_starts(
    tmp_path: Path, override: str, good: dict, wrong: dict, message: str
) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(f"{json.dumps(good)}\n{json.dumps(wrong)}", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        check([override.replace("FILE", str(file))], None)


@pytest.mark.parametrize("heldout", ["", "rlhf.heldout=['FILE']"])
def test_an_alignment_that_has_nothing_to_train_on_or_to_be_scored_on_is_refused_before_anything_starts(
    tmp_path: Path, heldout: str
) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(TASK), encoding="utf-8")
    overrides = [text.replace("FILE", str(file)) for text in ("rlhf.tasks=['FILE']", heldout) if text]
    with pytest.raises(UserError, match=r"\[rlhf\] it has \d items to train on and \d held-out ones; it needs both"):
        check(overrides, None)


def test_data_of_which_nothing_fits_are_refused_before_training(tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    long, short = json.dumps({**PAIR, "chosen": LONG}), json.dumps(PAIR)
    heldout = tmp_path / "heldout.jsonl"
    question = [{"role": "user", "content": "Another?"}]
    for data, held, part in ((long, short, "train on"), (short, long, "be scored on")):
        file.write_text(data, encoding="utf-8")
        heldout.write_text(json.dumps({**json.loads(held), "messages": question}), encoding="utf-8")
        with pytest.raises(UserError, match=rf"\[rlhf\] no preference pair to {part} fits into 64 tokens"):
            check([PAIRS.replace("FILE", str(file)), f"rlhf.heldout=['{heldout}']"], tokenizer)
    file.write_text(
        json.dumps({"messages": [{"role": "user", "content": LONG}, CHAT["messages"][1]]}), encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"\[instruct\] no chat has an assistant's token within train.seq_len = 64"):
        check([f"instruct.data=['{file}']"], tokenizer)


@pytest.mark.parametrize("key", ["prompts", "questions"])
def test_a_prompt_or_question_of_the_recipe_that_would_be_cut_is_named_before_training(
    tokenizer: Path, key: str
) -> None:
    check([f"evaluate.{key}=['Why?']"], tokenizer)
    with pytest.raises(UserError, match=rf"\[evaluate\] {key}\[1\]: .* context is 96"):
        check([f"evaluate.{key}=['Why?', '{LONG}']"], tokenizer)
