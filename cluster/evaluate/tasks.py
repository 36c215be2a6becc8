"""The parts of an evaluation that ask the model something: multiple choice, verified generation, samples.

Each is a function of a model artifact and plain settings, run as a Ray task by evaluate.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.errors import UserError

if TYPE_CHECKING:
    from cluster.evaluate.config import EvaluateConfig, TaskConfig
    from cluster.store.artifact import Artifact

BATCH = 64
CHOICE_SAMPLES = 32  # ways of hiding a choice's tokens; choices are short, and compared one by one


def score_task(model: Artifact, task: TaskConfig, config: EvaluateConfig) -> dict[str, float]:
    """`NAME/accuracy` of one task, and how many items it had."""
    import torch

    from cluster.data.tokenizer.tokenizer import Tokenizer
    from cluster.serve.tools import load_beside
    from model.checkpoint import load_model

    torch.set_num_threads(1)
    decoder, tokenizer = load_model(model.path()), Tokenizer(model.path())
    if task.kind == "choice":
        rights = score_choices(decoder, tokenizer, task, config)
    else:
        load = partial(load_beside, folder=model.path(), device="cpu")
        rights = score_answers(decoder, tokenizer, task, config, load)
    accuracy = sum(rights) / len(rights)
    return {f"{task.name}/accuracy": accuracy, f"{task.name}/items": float(len(rights))}


def score_choices(decoder: Any, tokenizer: Any, task: TaskConfig, config: EvaluateConfig) -> list[float]:
    """1 where the right choice has the highest log-probability per UTF-8 byte, for each item.

    The normaliser is the choice's bytes, as in acc_norm of the usual harness, so tokenizers compare. Of a diffusion
    model it is the bound of the choice's tokens after the prompt.
    """
    import torch

    from cluster.data.examples.lengths import choice_ids
    from cluster.evaluate.check import read_items
    from model.objectives.logprobs import sequence_logprobs
    from model.objectives.masked_diffusion import likelihood_bound
    from model.objectives.next_token import IGNORE, Batch
    from model.segments import pads_apart

    items = read_items(task, tokenizer, decoder.config.max_seq_len)
    rows = [choice_ids(tokenizer, item, choice) for item in items for choice in item["choices"]]
    totals: list[float] = []
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            width = max(len(ids) for ids, _ in part)
            tokens = torch.full((len(part), width), tokenizer.pad_id)
            mask = torch.zeros(tokens.shape, dtype=torch.bool)
            for row, (ids, begin) in enumerate(part):
                tokens[row, : len(ids)] = torch.tensor(ids)
                mask[row, begin : len(ids)] = True
            if decoder.config.causal:
                totals += sequence_logprobs(decoder, tokens, mask).sum(1).tolist()
                continue
            positions = pads_apart(torch.tensor([len(ids) for ids, _ in part]), width)
            batch = Batch(tokens, torch.where(mask, tokens, IGNORE), positions)
            numbers = start + torch.arange(len(part))
            totals += (-likelihood_bound(decoder, batch, numbers, CHOICE_SAMPLES, config.seed)[0]).tolist()
    if any(map(math.isnan, totals)):
        raise UserError(f"[evaluate] task {task.name!r}: the model gives NaN for a choice: has its training diverged?")
    rights, at = [], 0
    for item in items:
        per_byte = [
            total / len(choice.encode())  # examples.py reads no empty choice
            for total, choice in zip(totals[at : at + len(item["choices"])], item["choices"], strict=True)
        ]
        at += len(item["choices"])
        rights.append(float(per_byte.index(max(per_byte)) == item["answer"]))
    return rights


def score_answers(
    decoder: Any, tokenizer: Any, task: TaskConfig, config: EvaluateConfig, load: Callable[[str], Any]
) -> list[float]:
    """The verifier's reward of each answer, greedy unless the task says otherwise; one that doesn't end has none.

    load: another model by its name, for a decoding that has one.
    """
    from cluster.data.examples.examples import prompt_ids
    from cluster.evaluate.check import read_items
    from cluster.serve.stops import said
    from cluster.serve.tools import tools
    from cluster.verify.verifiers import verify
    from model.generate.by_kind import generate

    items = read_items(task, tokenizer, decoder.config.max_seq_len)
    prompts = [prompt_ids(tokenizer, item) for item in items]
    decoding, ends = config.answering(task), (tokenizer.end_id, tokenizer.eos_id)
    surroundings = tools(tokenizer, decoding, decoder, load, items)
    completions = generate(decoder, prompts, decoding.ended_by(ends), tools=surroundings)
    rewards = []
    for item, completion in zip(items, completions, strict=True):
        given = replace(decoding, stops=(*ends, *decoding.stops))
        answer, ended = said(tokenizer, completion.tokens, given, continues=False)
        rewards.append(verify(item, answer) if ended else 0.0)
    return rewards


def sample(model: Artifact, config: EvaluateConfig) -> list[dict[str, str]]:
    """What the model makes of the recipe's prompts and questions."""
    import torch

    from cluster.serve.generator import Generator
    from model.generate.decoding import OF_UNMASKING

    torch.set_num_threads(1)
    asked = [[{"role": "user", "content": question}] for question in config.questions]
    prompts = [*config.prompts, *asked]
    if not prompts:
        return []
    generator = Generator(model.path(), device="cpu")
    decoding = config.sampling
    if generator.model.config.causal:
        decoding = replace(decoding, **{name: option.default for name, option in OF_UNMASKING.items()})
    texts = generator.generate(prompts, decoding)
    return [
        {"prompt": p if isinstance(p, str) else p[0]["content"], "completion": text}
        for p, text in zip(prompts, texts, strict=True)
    ]
