"""An imported model is instructed by its own chat template: what is learned, how it chats then, and how it goes out."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.align import instruct
from cluster.align.instruct import InstructConfig, Instruction, instruct_worker
from cluster.data.rows import IGNORE
from cluster.data.tokenizer.chat import render_prompt
from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.interop.base import find_base, run_base
from cluster.interop.huggingface import export_folder
from cluster.train.export import TOKENIZER_FILES
from model.checkpoint import load_model
from model.train_config import TrainConfig
from tests.cluster.their_chat_model import FAMILIES, MARKED, make_chat_model, write_chats
from tests.cluster.train.alone import Alone, folder_of


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path, list, list]:
    """(family, their folder, ours after the training, the conversations, the batches that were trained on)"""
    folder = tmp_path_factory.mktemp("made")
    theirs, ours, done = make_chat_model(folder / "theirs", request.param), folder / "ours", folder / "done"
    chats = write_chats(folder / "chats.jsonl")
    ours.mkdir()
    run_base(SimpleNamespace(config=find_base(str(theirs)), out=ours))  # type: ignore[arg-type]
    train = TrainConfig(steps=6, batch_size=2, seq_len=192, lr=1e-2, warmup_steps=1, checkpoint_every=6)
    config = InstructConfig(data=(str(folder / "chats.jsonl"),), train=train)
    seen: list = []
    with pytest.MonkeyPatch.context() as patch:
        plain = instruct.batch_for
        patch.setattr(instruct, "batch_for", lambda o, arrays, n: seen.append(arrays) or plain(o, arrays, n))
        instruct_worker(Alone(done), Instruction(config, folder_of(ours), None))
    for name in TOKENIZER_FILES:
        (done / name).write_bytes((ours / name).read_bytes())
    return request.param, theirs, done, chats, seen


def learned(ids: list[int], mask: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A conversation's tokens, and the targets after each."""
    targets = [i if m else IGNORE for i, m in zip(ids[1:], mask[1:], strict=True)]
    return tuple(ids[:-1]), tuple(targets)


def test_what_is_trained_on_is_what_transformers_says_that_assistants_say(made: Any) -> None:
    name, theirs, _, chats, batches = made
    tokenizer = AutoTokenizer.from_pretrained(theirs)
    reference = set()
    for messages in chats:
        found = tokenizer.apply_chat_template(
            messages, chat_template=MARKED[name], return_dict=True, return_assistant_tokens_mask=True
        )
        assert list(found["input_ids"]) == list(tokenizer.apply_chat_template(messages, return_dict=False))
        reference.add(learned(list(found["input_ids"]), list(found["assistant_masks"])))
    trained = set()
    for tokens, targets, positions in batches:
        for row in range(len(tokens)):
            starts = [*(positions[row] == 0).nonzero()[0], len(tokens[row])]
            for begin, end in pairwise(starts):
                if (targets[row, begin:end] != IGNORE).any():
                    trained.add(tuple(tuple(part[row, begin:end].tolist()) for part in (tokens, targets)))
    assert trained == reference and len(trained) == len(chats)


def test_the_result_chats_and_goes_out_by_the_same_template(made: Any, tmp_path: Path) -> None:
    _, theirs, done, chats, _ = made
    before = AutoTokenizer.from_pretrained(theirs)
    prompt = chats[0][:1]
    ids = before.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    assert render_prompt(Tokenizer(done), prompt) == list(ids)
    export_folder(done, tmp_path / "out", None, 10**9)
    after = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert after.chat_template == before.chat_template
    assert list(after.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)) == list(ids)
    out = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    asked = torch.tensor([list(ids)])
    with torch.no_grad():
        ours = load_model(done)
        logits = ours.logits(ours(asked)[0])
        torch.testing.assert_close(logits, out(asked).logits, atol=1e-4, rtol=1e-4)
        was = AutoModelForCausalLM.from_pretrained(theirs, dtype=torch.float32)(asked).logits
    assert (was - logits).abs().max() > 0.01, "it has learned something"
