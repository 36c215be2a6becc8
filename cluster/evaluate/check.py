"""Before an evaluation: are its tasks right, and does the model's context hold them? See cluster.stage.Stage.check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cluster.data.examples import examples, generated
from cluster.data.examples.lengths import choice_fits, task_fits
from cluster.errors import UserError
from cluster.serve.context import check_prompt
from cluster.train.cost import model_of

if TYPE_CHECKING:
    from cluster.data.tokenizer.tokenizer import Tokenizer
    from cluster.evaluate.config import EvaluateConfig, TaskConfig
    from cluster.stage import Step


def check_evaluate(step: Step, tokenizer: Path | None) -> None:
    """Raises UserError for a task, a prompt or a question that can't be used, named by its file and line or its key."""
    config: EvaluateConfig = step.config
    for task in config.tasks:
        if tokenizer is None and not task.data.startswith(generated.SCHEME):
            read_items(task)
    if tokenizer is None:
        return
    from cluster.data.tokenizer.tokenizer import Tokenizer

    pieces, context = Tokenizer(tokenizer), model_of(step.inputs["model"]).max_seq_len
    for task in config.tasks:
        read_items(task, pieces, context)
    asked = [("prompts", number, text) for number, text in enumerate(config.prompts)]
    asked += [("questions", number, [{"role": "user", "content": q}]) for number, q in enumerate(config.questions)]
    for key, number, prompt in asked:
        try:
            check_prompt(pieces, prompt, context, config.sampling.max_new_tokens)
        except UserError as error:
            raise UserError(f"[evaluate] {key}[{number}]: {error}") from None


def read_items(task: TaskConfig, tokenizer: Tokenizer | None = None, context: int = 0) -> list[examples.Example]:
    """A task's items; with a tokenizer each is measured against the model's context."""
    choice = task.kind == "choice"
    fits = (choice_fits if choice else task_fits)(tokenizer, context) if tokenizer else None
    try:
        return (examples.read_choices if choice else examples.read_tasks)(task.data, task.limit, fits)
    except UserError as error:
        raise UserError(f"[evaluate] task {task.name!r}: {error}") from None
