"""A stranger's model: names and links that lead elsewhere, numbers that its files can't bear out, later formats."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from cluster.data.rows import TokenRows
from cluster.data.tokenizer.exchange import kept_files
from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.errors import UserError
from cluster.interop.gguf_contents import open_gguf
from cluster.interop.huggingface import export_folder, import_folder
from cluster.tracking.place import checked_experiment
from cluster.tracking.tracker import TrackingConfig
from model.checkpoint import load_model
from tests.cluster.data.tokenizer.their_tokenizers import byte_level

SOON = 5.0  # seconds of the processor; each of these took minutes, or all memory


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    config = LlamaConfig(vocab_size=640, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=32)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_level(folder)
    return folder


@pytest.fixture(scope="module")
def ours(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent") / "ours"
    import_folder(whole, folder)
    return folder


@pytest.fixture
def theirs(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "theirs"))


def edit(path: Path, **more: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | more), encoding="utf-8")


@pytest.fixture
def soon() -> Iterator[None]:
    begun = time.process_time()
    yield
    assert time.process_time() - begun < SOON


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_link_out_of_the_folder_is_refused_before_anything_is_read(theirs: Path, tmp_path: Path, name: str) -> None:
    shutil.move(theirs / name, tmp_path / "moved")
    (theirs / name).symlink_to("../moved")
    with pytest.raises(UserError, match=rf"{name} is a link to '\.\./moved', outside of its folder"):
        import_folder(theirs, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["moved", "theirs"]


def test_a_snapshot_in_the_hubs_cache_is_imported(theirs: Path, tmp_path: Path) -> None:
    repo = tmp_path / "models--a--b"
    snapshot = repo / "snapshots" / "0f1e"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for number, path in enumerate(sorted(theirs.iterdir())):
        path.rename(repo / "blobs" / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    import_folder(snapshot, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["../x", "/tmp/tokenmill-x", "a\\b", "x.py", "a/../tokenizer.json", "tokenizer.json/"])
def test_an_export_writes_no_file_but_a_tokenizers(ours: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(ours, tmp_path / "deep" / "ours"))
    edit(folder / "tokenizer.json", files={name: "written"})
    with pytest.raises(UserError, match=r"tokenizer\.json names "):
        export_folder(folder, tmp_path / "deep" / "out", None, 1 << 30)
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["ours"]
    assert kept_files({"files": {"merges.txt": "a b"}}) == {"merges.txt": "a b"}


@pytest.mark.parametrize("number", [10**9, 10**19, 10**30])
@pytest.mark.parametrize("key", ["num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "head_dim",
                                 "num_attention_heads", "num_key_value_heads"])  # fmt: skip
def test_a_config_of_huge_numbers_is_refused_at_once(theirs: Path, tmp_path: Path, soon, key: str, number: int) -> None:
    edit(theirs / "config.json", **{key: number})
    with pytest.raises(UserError):
        import_folder(theirs, tmp_path / "out")


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "MixtralForCausalLM",
                                          "GPT2LMHeadModel",
                                          "Gemma3ForCausalLM", "BambaForCausalLM", "Lfm2ForCausalLM"])  # fmt: skip
def test_a_config_without_weights_is_no_reason_to_count_to_a_billion(tmp_path: Path, soon, architecture: str) -> None:
    keys = dict.fromkeys(("num_hidden_layers", "n_layer", "num_local_experts"), 10**9)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture], **keys}), encoding="utf-8")
    with pytest.raises(UserError, match="says 1000000000 layers"):
        import_folder(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("key", ["n_layers", "d_model", "d_head", "d_ff", "vocab_size", "n_heads"])
def test_a_folder_of_ours_with_huge_numbers_is_refused_at_once(ours: Path, tmp_path: Path, soon, key: str) -> None:
    folder = Path(shutil.copytree(ours, tmp_path / "ours"))
    edit(folder / "config.json", **{key: 10**9})
    with pytest.raises(UserError, match=r"config\.json says|is not a multiple|does not divide"):
        load_model(folder)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def head(tensors: int, keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)


HEADERS = {
    "keys": head(0, 10**18),
    "tensors": head(10**18, 0) + bytes(100),
    "array": head(0, 1) + text("a") + struct.pack("<IIQ", 9, 0, 10**18),
    "an array of 3 million": head(0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 3_000_000) + bytes(64),
    "an array of 5 million": head(0, 1) + text("a") + struct.pack("<IIQ", 9, 0, 5_000_000) + bytes(5_000_000),
    "arrays in arrays": head(0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 9, 1) * 5000,
    "text": head(0, 1) + struct.pack("<Q", 1 << 63),
    "sides": head(1, 0) + text("a") + struct.pack("<I", 1 << 31) + bytes(64),
    "one over another": head(2, 0)
    + b"".join(text(n) + struct.pack("<IQIQ", 1, 64, 0, 0) for n in "ab") + bytes(30) + bytes(256),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_a_gguf_that_counts_more_than_it_has_is_refused_at_once(tmp_path: Path, soon, case: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(HEADERS[case])
    with pytest.raises(UserError, match="can't be read as a GGUF file"):
        open_gguf(path)


def test_a_later_format_of_a_tokenizer_and_of_tokens_is_refused(ours: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ours, tmp_path / "ours"))
    (folder / "index.json").write_text('{"format": 1, "sources": {}, "pad_id": 0, "dtype": "<u2"}', encoding="utf-8")
    for name, read in (("tokenizer.json", Tokenizer), ("index.json", lambda f: TokenRows(f, 2))):
        read(folder)
        for number, said in ((2, "newer tokenmill"), (10**30, "newer tokenmill"), ("1", "format"), (0, "format")):
            edit(folder / name, format=number)
            with pytest.raises(UserError, match=rf"{name} .*{said}"):
                read(folder)
        edit(folder / name, format=1)


@pytest.mark.parametrize("name", ["..", ".", "...", " ", "a\nb", "\x1b[2J", "ü" * 200])
def test_an_experiment_whose_files_have_no_folder_is_refused_at_once(name: str) -> None:
    for take in (checked_experiment, lambda name: TrackingConfig(experiment=name)):
        with pytest.raises(ValueError, match="is no name of an experiment"):
            take(name)
    assert checked_experiment("Über a/b: 1..2") == "Über a/b: 1..2"
