"""What `--plan` estimates for alignment: what is sampled, what passes the reference, what is learned from."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
import torch
from rich.console import Console

from cluster.align.config import RlhfConfig
from cluster.align.cost import lengths, rlhf_cost
from cluster.align.rlhf import STAGE as RLHF
from cluster.cost import SAMPLING, Cost, Machine, Work
from cluster.data.tokenizer.training import STAGE as TOKENIZER
from cluster.data.tokenizer.training import TokenizerConfig
from cluster.stage import Step
from cluster.train.cost import memory_of
from cluster.train.pretrain import STAGE as PRETRAIN
from cluster.train.pretrain import PretrainConfig
from flows import plan
from flows.graph import graph
from flows.recipe_read import read_recipe
from model.config import ModelConfig
from model.count import flops_per_token
from model.memory import memory
from model.train_config import TrainConfig

MODEL = ModelConfig(vocab_size=300, d_model=32, n_layers=2, max_seq_len=256)
TRAIN = TrainConfig(steps=3, batch_size=8, seq_len=128)
TASKS = ("generated://arithmetic?n=20",)


def cost(**given: Any) -> Cost:
    usual = {"tasks": TASKS, "heldout_items": 2, "group_size": 4, "max_new_tokens": 10, "train": TRAIN}
    tokenizer = Step("tokenizer", TOKENIZER, TokenizerConfig(vocab_size=300), {})
    base = Step("pretrain", PRETRAIN, PretrainConfig(model=replace(MODEL, vocab_size=0)), {"tokenizer": tokenizer})
    return rlhf_cost(Step("rlhf", RLHF, RlhfConfig(**usual | given), {"model": base}), Machine(1e9))


def works(found: Cost) -> dict[str, Work]:
    return {work.what: work for work in found.works}


def test_every_answer_is_sampled_and_learned_from_and_scores_are_sampled_too() -> None:
    found = cost()
    part = works(found)
    prompt, answer = lengths(RlhfConfig(tasks=TASKS, max_new_tokens=10))
    assert answer == 10 and 5 < prompt < 60
    learned, scored = 3 * 8, 2 * 2 * 5  # answers of 3 steps; of 2 prompts, greedy and 4 samples, before and after
    assert part["sampling"].tokens == (learned + scored) * (prompt + answer)
    assert part["update"].tokens == part["reference"].tokens == learned * (prompt + answer)
    assert part["update"].flops == pytest.approx(3 * part["reference"].flops)
    length = prompt + answer
    once = length * (flops_per_token(MODEL, length, train=False) - 2 * 300 * 32) + answer * 2 * 300 * 32
    assert part["reference"].flops == pytest.approx(learned * once)
    # Of a prompt's tokens only the last needs logits; an answer's last token is drawn and goes in no more.
    head = 2 * 300 * 32
    prefill = prompt * (flops_per_token(MODEL, prompt, train=False) - head) + head
    decode = sum(flops_per_token(MODEL, 1, train=False, span=prompt + t) for t in range(1, answer))
    assert part["sampling"].flops == pytest.approx((learned + scored) * (prefill + decode))
    assert part["sampling"].seconds == pytest.approx(part["sampling"].flops / (1e9 * SAMPLING["cpu"]))
    assert (found.tokens, found.flops) == (sum(w.tokens for w in found.works), sum(w.flops for w in found.works))


def test_memory_is_of_the_micro_batches_of_the_dtype() -> None:
    train = TrainConfig(batch_size=64, seq_len=128)
    for dtype, rows in ((None, 16), (torch.float32, 16), (torch.bfloat16, 32)):
        expected = memory(MODEL, rows, 128, dtype=dtype or torch.float32)
        assert memory_of(MODEL, train, 128, Machine(1e9, "cpu", dtype)) == expected


def test_without_a_kl_there_is_no_reference_pass() -> None:
    assert "reference" not in works(cost(kl_coef=0.0))


def test_pairs_are_two_rows_and_nothing_is_sampled(tmp_path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    line = '{"messages": [{"role": "user", "content": "abcdef"}], "chosen": "abc", "rejected": "abcdefghi"}\n'
    pairs.write_text(line * 3, encoding="utf-8")
    given = {"tasks": (), "preferences": (str(pairs),)}
    dpo, simpo = (works(cost(method=method, **given)) for method in ("dpo", "simpo"))
    length = round(6 / 3 + 6) + round(6 / 3 + 6)
    assert dpo["update"].tokens == 3 * 8 * 2 * length and dpo.keys() == {"reference", "update"}
    assert dpo["reference"].tokens == dpo["update"].tokens + 2 * 2 * 2 * length
    assert simpo["reference"].tokens == 2 * 2 * 2 * length  # the scores alone


def test_the_reference_s_weights_and_the_caches_are_in_the_memory() -> None:
    wide = cost(train=TrainConfig(steps=3, batch_size=8, seq_len=128, micro_batch_size=1))
    many = cost(train=TrainConfig(steps=3, batch_size=256, seq_len=128, micro_batch_size=1))
    assert many.memory > wide.memory  # more rows are sampled at once, none more is learned from


def test_the_demo_s_plan_shows_sizes_flops_and_each_part() -> None:
    recipe = read_recipe("demo", ['model.ff_pattern=["dense", "moe"]', "train.activation_checkpointing=full"])
    screen = StringIO()
    costs = plan._costs(recipe, graph(recipe), Console(file=screen, width=160))
    text = screen.getvalue()
    assert costs.keys() == {"pretrain", "instruct", "rlhf"}
    for words in ("active for a token", "FLOPs per token", "sampling", "reference", "update", "full"):
        assert words in text, words
