"""When a run looks at its stages' data: before anything starts, and before a model is trained on them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.errors import UserError
from flows.recipe_read import read_recipe
from flows.run import Run

RECIPE = Path(__file__).parents[1] / "recipes" / "tiny.toml"


def test_a_wrong_task_ends_a_run_before_anything_starts(tmp_path: Path) -> None:
    tasks = tmp_path / "x.jsonl"
    tasks.write_text('{"prompt": "a", "answer": "four", "verifier": "number"}', encoding="utf-8")
    given = [f"rlhf.tasks=['{tasks}']", f"store.url='{tmp_path / 'store'}'"]
    recipe = read_recipe(str(RECIPE), given)
    with pytest.raises(UserError, match=r"x.jsonl:1: .*'four' is no number"):
        Run.open(recipe, console=Console(file=io.StringIO()))
    assert Run.open(recipe, "evaluate-base", Console(file=io.StringIO())).steps, "what isn't run isn't looked at"


def test_what_is_missing_is_measured_once_there_is_a_tokenizer_and_before_more_is_done(make_run: Any) -> None:
    done: list[str] = []
    asked: list[tuple[str, Any]] = []

    def work(ws: Any) -> dict:
        done.append(ws.step)
        return {}

    def make(refused: bool) -> Run:
        run = make_run(dict.fromkeys(("corpus", "tokenizer", "pretrain", "evaluate"), work))

        def check(step: Any, folder: Path | None) -> None:
            asked.append((step.name, folder))
            if refused:
                raise UserError("too long")

        evaluate = run.steps[-1]
        run.steps[-1] = replace(evaluate, stage=replace(evaluate.stage, check=check))
        return run

    run = make(refused=True)
    run.execute("corpus")
    run.execute("tokenizer")
    assert not asked
    with pytest.raises(UserError, match="too long"):
        run.execute("pretrain")
    assert done == ["corpus", "tokenizer"]
    assert asked == [("evaluate", run.outcomes["tokenizer"].artifact.path())]

    run = make(refused=False)
    for step in run.steps:
        run.execute(step.name)
    assert len(asked) == 2 and done[2:] == ["pretrain", "evaluate"], "it is measured once"
