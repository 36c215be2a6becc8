"""What is known of an alignment's data before any model is trained: do they fit?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_model import make_model

from cluster.align.check import check_instruct, check_rlhf, rendered_pair
from cluster.align.config import RlhfConfig
from cluster.align.instruct import STAGE as INSTRUCT
from cluster.align.instruct import InstructConfig
from cluster.align.rlhf import STAGE as RLHF
from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.data.tokenizer.training import STAGE as TOKENIZER
from cluster.data.tokenizer.training import TokenizerConfig
from cluster.errors import UserError
from cluster.stage import Step
from cluster.train.pretrain import STAGE as PRETRAIN
from cluster.train.pretrain import PretrainConfig
from model.config import ModelConfig
from model.train_config import TrainConfig

ASKED = [{"role": "user", "content": "Why?"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def step(stage: Any, config: Any, max_seq_len: int = 512) -> Step:
    pieces = Step("tokenizer", TOKENIZER, TokenizerConfig(vocab_size=360), {})
    shape = ModelConfig(d_model=32, max_seq_len=max_seq_len)
    base = Step("pretrain", PRETRAIN, PretrainConfig(model=shape), {"tokenizer": pieces})
    return Step(stage.name, stage, config, {"model": base})


def write(path: Path, *lines: dict) -> tuple[str]:
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return (str(path),)


def test_pairs_of_which_not_one_fits_are_refused_and_one_that_just_fits_is_enough(
    tokenizer: Path, tmp_path: Path
) -> None:
    long = {"messages": ASKED, "chosen": "b" * 90, "rejected": "c"}
    short = {"messages": ASKED, "chosen": "b" * 5, "rejected": "c" * 20}
    data = write(tmp_path / "pairs.jsonl", long, short)
    other = {"messages": [{"role": "user", "content": "A?"}], "chosen": "b", "rejected": "c"}
    held = write(tmp_path / "held.jsonl", other)
    size = max(len(side.ids) for side in rendered_pair(Tokenizer(tokenizer), short))
    for row, context, fits in ((size, 512, True), (size - 1, 512, False), (512, size, True), (512, size - 1, False)):
        train = TrainConfig(seq_len=row)
        dpo = step(RLHF, RlhfConfig(method="dpo", preferences=data, heldout=held, train=train), context)
        check_rlhf(dpo, None)
        if fits:
            check_rlhf(dpo, tokenizer)
        else:
            with pytest.raises(
                UserError, match=rf"\[rlhf\] no preference pair to train on fits into {size - 1} tokens"
            ):
                check_rlhf(dpo, tokenizer)


def test_chats_whose_answers_all_begin_beyond_a_row_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "It is."}
    data = write(tmp_path / "chats.jsonl", {"messages": [{"role": "user", "content": "b" * 60}, answer]})
    for seq_len, fits in ((200, True), (30, False)):
        chats = step(INSTRUCT, InstructConfig(data=data, train=TrainConfig(seq_len=seq_len)))
        if fits:
            check_instruct(chats, tokenizer)
        else:
            with pytest.raises(UserError, match=rf"\[instruct\] no chat has .* train.seq_len = {seq_len}"):
                check_instruct(chats, tokenizer)
