"""What a GGUF file holds and a Llama of ours has no place for is refused by name; a broken file by what it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.errors import UserError
from cluster.interop.gguf import describe, describe_tokenizer, import_gguf
from cluster.interop.gguf_architectures import ARCHITECTURES, tensors
from model.checkpoint import load_config
from tests.cluster.tiny_model import make_model

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("ours"))


def write(folder: Path, target: Path, keys: dict[str, Any] | None = None, more: dict[str, Any] | None = None) -> Path:
    """A file with more keys, or with other tensors (None: without that one)."""
    config, given = load_config(folder), keys or {}
    writer = gguf.GGUFWriter(target, "llama")
    describe(writer, config, "m")
    describe_tokenizer(writer, Tokenizer(folder))
    for name, value in given.items():
        writer.kv_data[0].pop(name, None)
        kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
        getattr(writer, f"add_{kinds[type(value)]}")(name, value)
    for name, values in (dict(tensors(folder, config, ARCHITECTURES[0])) | (more or {})).items():
        if values is not None:
            writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_what_changes_nothing_is_read_over(folder, tmp_path):
    keys = {
        "llama.rope.scaling.factor": 1.0,
        "llama.attention.sliding_window": 0,
        "llama.expert_count": 0,
        "llama.logit_scale": 1.0,
        "llama.residual_scale": 1.0,
        "general.author": "a",
        "tokenizer.ggml.cls_token_id": 3,
        "tokenizer.ggml.add_sep_token": False,
        "split.count": 1,
    }
    import_gguf(write(folder, tmp_path / "m.gguf", keys), tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("llama.rope.scaling.type", "yarn"),
        ("llama.rope.scaling.factor", 8.0),
        ("llama.rope.scale_linear", 2.0),
        ("llama.rope.freq_base_swa", 10_000.0),
        ("llama.rope.dimension_sections", [1, 2]),
        ("llama.attention.sliding_window", 128),
        ("llama.attention.scale", 0.5),
        ("llama.attention.clamp_kqv", 8.0),
        ("llama.attention.causal", False),
        ("llama.attention.head_count", [2, 1]),
        ("llama.feed_forward_length", "wide"),
        ("llama.attn_logit_softcapping", 50.0),
        ("llama.final_logit_softcapping", 30.0),
        ("llama.logit_scale", 0.25),
        ("llama.embedding_scale", 12.0),
        ("llama.residual_scale", 0.2),
        ("llama.expert_count", 8),
        ("llama.something_new", 1),
        ("llama4.attention.chunk", 1),
        ("adapter.type", "lora"),
        ("general.type", "adapter"),
        ("general.architecture", "qwen2"),
        ("split.count", 2),
        ("tokenizer.ggml.add_eos_token", True),
        ("tokenizer.ggml.something_new", 1),
        ("tokenizer.ggml.bos_token_id", 99_999),
        ("tokenizer.ggml.eot_token_id", 99_999),
        ("tokenizer.ggml.bos_token_id", True),
        ("tokenizer.ggml.add_space_prefix", "yes"),
        ("split.count", "two"),
    ],
)
def test_a_key_that_changes_the_model_is_refused_by_name(folder, name, value, tmp_path):
    with pytest.raises(UserError, match=rf"m.gguf: {name} = ") as refused:
        import_gguf(write(folder, tmp_path / "m.gguf", {name: value}), tmp_path / "back")
    assert str(value)[:10] in str(refused.value)
    assert not (tmp_path / "back").exists()


def test_a_table_of_characters_that_is_none_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"m.gguf: its tokenizer.ggml keys are no sentencepiece model"):
        import_gguf(write(folder, tmp_path / "m.gguf", {"tokenizer.ggml.precompiled_charsmap": [1, 2]}), tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("block_count", 10**9, "llama.block_count = 1000000000, but the file has"),
        ("rope.freq_base", 0.0, "rope_theta = 0.0 must be"),
        ("attention.layer_norm_rms_epsilon", float("nan"), "norm_eps = nan must be"),
    ],
)
def test_a_number_that_can_t_be_is_refused_by_file_at_once(folder, name, value, said, tmp_path):
    with pytest.raises(UserError, match=f"m.gguf: {said}"):
        import_gguf(write(folder, tmp_path / "m.gguf", {f"llama.{name}": value}), tmp_path / "back")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("blk.0.attn_q.bias", np.ones(32)),
        ("blk.1.ffn_up.bias", np.ones(96)),
        ("output_norm.bias", np.ones(32)),
        ("rope_freqs.weight", np.ones(8)),
        ("blk.0.attn_q.scale", np.ones(1)),
        ("blk.0.attn_q_norm.weight", np.ones(16)),
        ("blk.0.ffn_gate_exps.weight", np.ones((2, 8, 32))),
        ("blk.7.attn_q.weight", np.ones((32, 32))),
        ("something.else", np.ones(3)),
    ],
)
def test_a_tensor_that_is_left_over_is_refused_by_name(folder, name, values, tmp_path):
    with pytest.raises(UserError, match=rf"has the tensor {name}"):
        import_gguf(write(folder, tmp_path / "m.gguf", more={name: values}), tmp_path / "back")


def test_a_tensor_that_is_missing_or_of_another_shape_is_refused_by_name(folder, tmp_path):
    with pytest.raises(UserError, match=r"lacks blk\.1\.ffn_norm\.weight"):
        import_gguf(write(folder, tmp_path / "m.gguf", more={"blk.1.ffn_norm.weight": None}), tmp_path / "back")
    with pytest.raises(UserError, match=r"blocks.0.mixer.out.weight is \(32, 16\)"):
        wrong = {"blk.0.attn_output.weight": np.ones((32, 16))}
        import_gguf(write(folder, tmp_path / "n.gguf", more=wrong), tmp_path / "back")


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_named(folder, share, tmp_path):
    whole = write(folder, tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"m.gguf can't be read as a GGUF file: it seems to be .*Download it again"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "back")


def test_what_is_no_gguf_file_is_named(tmp_path):
    for content, what in ((b"<!DOCTYPE html><html>", "a web page"), (b"version https://git-lfs.g", "Git LFS pointer")):
        (tmp_path / "m.gguf").write_bytes(content)
        with pytest.raises(UserError, match=what):
            import_gguf(tmp_path / "m.gguf", tmp_path / "back")
    (tmp_path / "f.gguf").mkdir()
    with pytest.raises(UserError, match="a folder"):
        import_gguf(tmp_path / "f.gguf", tmp_path / "back")
    with pytest.raises(LookupError, match="is not there"):
        import_gguf(tmp_path / "no.gguf", tmp_path / "back")
