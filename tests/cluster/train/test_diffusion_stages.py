"""A diffusion model through the stages, without Ray: pretrained, instructed, scored, asked."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alone import Alone, folder_of, make_tokens

from cluster.align import instruct
from cluster.align.config import RlhfConfig
from cluster.align.instruct import CANVAS, InstructConfig, Instruction, instruct_worker
from cluster.align.rlhf import Alignment, rlhf_worker
from cluster.data.chat_rows import ChatRows
from cluster.data.rows import TokenRows
from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.evaluate.bits import delta_bits, score_source
from cluster.evaluate.config import EvaluateConfig
from cluster.serve.generator import Generator
from cluster.train.loop import batch_for, numbers, objective_for
from cluster.train.pretrain import PretrainConfig, Pretraining, pretrain_worker
from model.checkpoint import load_model
from model.config import ModelConfig
from model.objectives import masked_diffusion
from model.train_config import TrainConfig

TRAIN = TrainConfig(
    objective="masked_diffusion",
    steps=80,
    batch_size=8,
    seq_len=48,
    lr=1e-2,
    optimizer="muon",
    warmup_steps=2,
    checkpoint_every=0,
)
SHAPE = ModelConfig(causal=False, d_model=32, n_layers=2, n_heads=2, max_seq_len=64)
CHAT = "generated://arithmetic?n=60&digits=1&cot=0"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokens(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def model(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained, then instructed with replay."""
    folder = tmp_path_factory.mktemp("model")
    Tokenizer(tokens).save(folder)
    worker = Alone(folder)
    pretraining = PretrainConfig(model=SHAPE, train=TRAIN, seed=1)
    pretrain_worker(worker, Pretraining(pretraining, folder_of(tokens), folder_of(tokens)))
    assert np.mean(worker.losses[-5:]) < 0.6 * worker.losses[0]
    worker = Alone(folder)
    tuning = InstructConfig(data=(CHAT,), train=replace(TRAIN, steps=30), replay=0.25)
    instruct_worker(worker, Instruction(tuning, folder_of(folder), folder_of(tokens)))
    assert np.mean(worker.losses[-5:]) < 0.8 * worker.losses[0]
    return folder


def test_each_row_of_instruction_tuning_has_noise_of_its_own(
    model: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    batch_for = instruct.batch_for

    def recorded(objective: Any, rows: Any, numbers: Any) -> Any:
        seen.extend(numbers)
        return batch_for(objective, rows, numbers)

    monkeypatch.setattr(instruct, "batch_for", recorded)
    tuning = InstructConfig(data=(CHAT,), train=replace(TRAIN, steps=3))
    worker = Alone(model)
    worker.save = lambda *_, **__: None  # type: ignore[method-assign]  # the model is shared
    instruct_worker(worker, Instruction(tuning, folder_of(model), folder_of(tokens)))
    assert seen == list(range(24))


def test_the_model_has_one_row_more_than_the_tokenizer(model: Path) -> None:
    config = load_model(model).config
    assert config.vocab_size == Tokenizer(model).vocab_size + 1 and config.mask_id == Tokenizer(model).vocab_size


def test_bits_per_byte_are_a_bound_below_the_unigram_s(model: Path, tokens: Path) -> None:
    config = EvaluateConfig(bound_samples=32)
    score = score_source(folder_of(model), folder_of(tokens), "prose", config)
    assert 0 < score["bpb_bound_error"] < 0.1 * score["bpb"]
    assert score["bpb"] < score["unigram_bpb"]
    again = score_source(folder_of(model), folder_of(tokens), "prose", config.model_copy(update={"seed": 5}))
    assert abs(again["bpb"] - score["bpb"]) < 5 * math.hypot(score["bpb_bound_error"], again["bpb_bound_error"])
    lengths = [len(d) for d in TokenRows(tokens, 64).validation_documents("prose")]
    assert score["bpb"] * score["bytes"] > sum(map(delta_bits, lengths)), "the lengths are paid for"


def test_a_bound_s_noise_is_another_one_for_each_held_out_row(
    model: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[int] = []
    bound, validation = masked_diffusion.likelihood_bound, TokenRows.validation

    def noted(decoder: Any, batch: Any, rows: torch.Tensor, *more: Any) -> Any:
        numbers.extend(rows.tolist())
        return bound(decoder, batch, rows, *more)

    monkeypatch.setattr(masked_diffusion, "likelihood_bound", noted)
    monkeypatch.setattr(TokenRows, "validation", lambda self, source, max_bytes: validation(self, source, 1, max_bytes))
    score_source(folder_of(model), folder_of(tokens), "prose", EvaluateConfig(bound_samples=2))
    assert numbers == list(range(len(numbers))) and len(numbers) > 2


def test_every_number_of_workers_hides_the_same_tokens(tokens: Path) -> None:
    chat = ChatRows([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 40,
                    Tokenizer(tokens), 48, ahead=0, tail=CANVAS)  # fmt: skip
    objective = objective_for(TRAIN, SHAPE.with_vocabulary(320), seed=2)

    def batch(rank: int, world_size: int) -> Any:
        worker = Alone(tokens, rank, world_size)
        return batch_for(objective, chat.batch(3, 8, rank, world_size), numbers(worker, 24, 8))

    whole = batch(0, 1)
    assert (whole.tokens_BT == 320).any()
    for world_size in (2, 3):
        parts = [batch(rank, world_size) for rank in range(world_size)]
        assert all(torch.equal(torch.cat(xs), x) for *xs, x in zip(*parts, whole, strict=True))


def test_prompts_and_messages_are_answered_and_streamed_alike(model: Path) -> None:
    generator = Generator(model, "cpu")
    prompts = ["The quick", [{"role": "user", "content": "What is 3 + 4?"}]]
    options: dict[str, Any] = {"max_new_tokens": 16, "temperature": 1.0}
    how = {**options, "steps": 6, "block_length": 8}
    texts = generator.generate(prompts, **how)
    for i, prompt in enumerate(prompts):
        streamed = "".join(generator.stream(prompt, seed=i, **how))
        assert streamed == generator.generate([prompt], seed=i, **how)[0] == texts[i]
    assert generator.generate(prompts, **options) != texts, "steps and blocks matter"


def test_a_causal_model_has_no_steps(tmp_path: Path) -> None:
    from tiny_model import make_model

    generator = Generator(make_model(tmp_path), "cpu")
    with pytest.raises(ValueError, match="for diffusion models"):
        generator.complete("a", steps=3)
    assert generator.complete("a", max_new_tokens=2, steps=0) is not None


def test_what_does_not_fit_is_refused_where_the_model_is_known(model: Path, tokens: Path) -> None:
    tuning = InstructConfig(data=(CHAT,), train=TrainConfig(steps=1, batch_size=8, seq_len=48))
    with pytest.raises(ValueError, match="train it with objective"):
        instruct_worker(Alone(model), Instruction(tuning, folder_of(model), folder_of(tokens)))
    with pytest.raises(ValueError, match=r"leave \[rlhf\] out"):
        rlhf_worker(Alone(model), Alignment(RlhfConfig(tasks=(CHAT,)), folder_of(model)))
