"""`tokenmill import` and `tokenmill export` as a person uses them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from model.checkpoint import load_config
from model.interop.convert import Converted
from model.interop.family import effective
from tests.cluster.tiny_mlflow import sqlite_place
from tests.cluster.tiny_model import TEXT, make_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def ok(*words: str) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.output


def greedy(model: str) -> str:
    result = call("generate", model, "The quick", "--max-tokens", "8", "--temperature", "0")
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_model_of_ours_goes_out_and_comes_back(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_model(folder / "ours")
    said = ok("export", "ours", "theirs", "--max-shard-size", "20KB")
    assert "LlamaForCausalLM" in said and "files" in said and "float32" in said and "64 tokens" in said
    model, tokenizer = AutoModelForCausalLM.from_pretrained("theirs"), AutoTokenizer.from_pretrained("theirs")
    ids = tokenizer("The quick", return_tensors="pt")["input_ids"]
    made = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert greedy("ours") == f"The quick{tokenizer.decode(made, skip_special_tokens=True)}\n"
    assert sorted(model.generation_config.eos_token_id) == [3, 7]
    said = ok("import", "theirs", "--out", "again")
    assert "trained by tokenmill" in said
    assert [line.split()[1] for line in said.partition("Next:\n")[2].splitlines()] == ["chat", "generate"]
    assert greedy("again") == greedy("ours")
    assert effective(load_config("again")) == effective(load_config("ours"))
    for name in ("tokenizer.model", "tokenizer.json"):
        assert (folder / "again" / name).read_bytes() == (folder / "ours" / name).read_bytes()


def test_a_gguf_file_is_told_with_its_size_and_precision(folder):
    pytest.importorskip("gguf")
    make_model(folder / "ours")
    said = ok("export", "ours", "ours.gguf", "--precision", "f32")
    assert said == f"Exported to ours.gguf: {(folder / 'ours.gguf').stat().st_size / 1e6:.1f} MB, f32\n"


def their_gpt2(folder: Path) -> Path:
    """A folder with a byte-level tokenizer.json, as GPT-2's."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXT, vocab_size=300, special_tokens=["<|endoftext|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def test_an_imported_model_is_registered_and_asked(folder, monkeypatch):
    sqlite_place(folder)
    their_gpt2(folder / "gpt2")
    said = ok("import", "gpt2", "--name", "gpt2-0.1m", "--out", "ours")
    assert "GPT2LMHeadModel" in said and "bfloat16 in the file" in said and "models:/gpt2-0.1m/1" in said
    assert greedy("models:/gpt2-0.1m/1") == greedy("ours")
    assert "gpt2-0.1m" in ok("models")
    assert "GPT2LMHeadModel" in ok("export", "models:/gpt2-0.1m/1", "back")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    refused = call("generate", "ours", "The quick")
    assert refused.exit_code == 1
    assert "pip install 'tokenizers" in " ".join(refused.output.split())


def test_what_cannot_be_done_is_said_in_one_paragraph(folder):
    assert "--out PATH" in _refused("import", "nowhere")
    assert "no config.json" in _refused("import", "nowhere", "--out", "x")
    make_model(folder / "ours")
    assert "already" in _refused("import", "ours", "--out", "x")
    assert "GPT2LMHeadModel can't hold" in _refused("export", "ours", "x", "--architecture", "GPT2LMHeadModel")
    assert "e.g. 5GB" in _refused("export", "ours", "x", "--max-shard-size", "5")
    assert "ours is there already" in _refused("export", "ours", "ours")
    assert "f32, f16, q8_0" in _refused("export", "ours", "x.gguf", "--precision", "q2")
    (folder / "gemma").mkdir()
    keys = {"architectures": ["Gemma2ForCausalLM"], "hidden_size": 32, "num_hidden_layers": 2}
    (folder / "gemma" / "config.json").write_text(json.dumps(keys), encoding="utf-8")
    assert "attn_logit_softcapping = 50.0" in _refused("import", "gemma", "--out", "x")
    assert not (folder / "x").exists()
    assert not list(folder.glob(".x-*"))


def _refused(*words: str) -> str:
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ m.content }", "broken, in line 1"),
        ("{{ raise_exception('only tools here') }}", "refuses this: only tools here"),
        ("{% for m in messages %}{{ m.content + 1 }}{% endfor %}", "fails (TypeError"),
    ],
)
def test_a_chat_template_that_no_conversation_can_be_written_by_is_said_at_import(folder, template, said):
    their_chat_model(folder / "theirs")
    words = " ".join(ok("import", "theirs", "--out", "good").split())
    assert "chat template its own" in words and "chat " in words.partition("Next:")[2]
    (folder / "theirs" / "chat_template.jinja").write_text(template, encoding="utf-8")
    words = " ".join(ok("import", "theirs", "--out", "ours").split())
    assert "its own can't be used" in words and said in words
    assert "chat" not in words.partition("Next:")[2].replace(str(folder), "")
    (folder / "r.toml").write_text('name = "x"\nbase = "ours"\n[instruct]\ndata = ["c.jsonl"]\n', encoding="utf-8")
    assert said in _refused("run", "r.toml", "--plan")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1.0"])
def test_a_number_that_cannot_be_names_its_file(folder, value):
    their_chat_model(folder / "theirs")
    path = folder / "theirs" / "config.json"
    text = path.read_text(encoding="utf-8").replace('"rms_norm_eps": 1e-06', f'"rms_norm_eps": {value}')
    path.write_text(text, encoding="utf-8")
    assert "theirs/config.json: norm_eps" in _refused("import", "theirs", "--out", "ours")


@pytest.mark.parametrize("name", ["a@b", "a/1", "", "it's", "a%20b"])
def test_a_name_that_the_registry_does_not_take_is_refused_before_anything_is_read(folder, name):
    refused = call("import", "nowhere", "--name", name, "--out", "ours")
    assert refused.exit_code == 2 and "--name" in refused.output and "nowhere" not in refused.output
    assert list(folder.iterdir()) == []


def test_an_import_that_fails_leaves_no_run_at_work(folder, monkeypatch):
    from cluster.interop.huggingface import register_folder
    from cluster.release import package
    from tests.cluster.tiny_mlflow import runs

    place = sqlite_place(folder)
    make_model(folder / "ours")
    done = Converted("LlamaForCausalLM", load_config(folder / "ours"), 1, "float32", 1)
    monkeypatch.setattr(package, "register", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        register_folder(folder / "ours", "m", done, folder, place)
    assert runs(place, "m")["import"].info.status == "FAILED"


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def their_chat_model(folder: Path) -> Path:
    """A Llama with a byte-level tokenizer and ChatML, whose config knows nothing of the token that ends a turn."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trained.train_from_iterator(TEXT, vocab_size=300, special_tokens=names)
    fast = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token=names[0])
    fast.chat_template = CHATML
    torch.manual_seed(3)
    config = LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=2, eos_token_id=0, bos_token_id=None, initializer_range=0.5)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def test_an_imported_model_chats_by_its_own_template(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sqlite_place(folder)
    their_chat_model(folder / "theirs")
    said = ok("import", "theirs", "--name", "chatty", "--out", "ours")
    assert "chat models:/chatty/1\n" in said.partition("Next:")[2]
    model, tokenizer = AutoModelForCausalLM.from_pretrained("theirs"), AutoTokenizer.from_pretrained("theirs")
    messages = [{"role": "user", "content": "What is two plus three?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    made = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=[0, 2])[0, ids.shape[1] :]
    expected = tokenizer.decode(made, skip_special_tokens=True)
    words = ["--max-tokens", "12", "--temperature", "0"]
    for name in ("ours", "models:/chatty/1"):
        said = CliRunner().invoke(app, ["chat", name, *words], input="What is two plus three?\n/exit\n")
        assert said.exit_code == 0, said.output
        assert expected.strip() and expected.strip() in said.output
    ok("export", "models:/chatty/1", "back")
    assert AutoTokenizer.from_pretrained("back").chat_template == CHATML
