"""A file of a Hugging Face folder that went wrong on its way is named, with what it seems to be and what to do."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.errors import UserError
from cluster.interop.huggingface import import_folder
from model.checkpoint import load_config, load_model
from tests.cluster.data.tokenizer.their_tokenizers import write
from tests.cluster.interop.their_folder import KINDS, write_folder

BROKEN = {
    "empty": (b"", "an empty file"),
    "zeros": (b"\0" * 4096, "nothing but zeros"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "a page": (b"\n<!DOCTYPE html>\n<html><body>Log in</body></html>", "a web page"),
    "a page without a doctype": (b"<HTML>404</HTML>", "a web page"),
    "an error": (b"Repository not found", "bytes of text"),
    "a zip archive": (b"PK\x03\x04\x14\x00\x00\x00" + b"\x07" * 99, "a zip archive"),
    "a pickle": (b"\x80\x02}q\x00.", "pickle"),
    "gzip": (b"\x1f\x8b\x08\x00" + b"\x07" * 99, "gzip"),
    "UTF-16": ("{}".encode("utf-16"), "UTF-16"),
    "a byte order mark": (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
    "not UTF-8": (b'{"a": "\xe9\xe8\xff"}' + b"\xfe\xe9" * 400, "seems to be"),
    "a list": (b"[1, 2]", "list|JSON"),
    "a number": (b"3", "int|text"),
    "a deep nest": (b"[" * 100_000, "nested|JSON"),
}
FILES = {
    "config.json": "bytes",
    "model.safetensors": "bytes",
    "tokenizer.model": "sentencepiece",
    "tokenizer.json": "bytes",
    "tokenizer_config.json": "bytes",
    "generation_config.json": "bytes",
    "special_tokens_map.json": "bytes",
    "added_tokens.json": "sentencepiece",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    """A model with each kind of tokenizer."""
    found = {}
    for kind in KINDS:
        found[kind] = tmp_path_factory.mktemp(kind)
        write_folder(found[kind], kind)
    return found


def refused(folder: Path, target: Path, name: str) -> str:
    with pytest.raises(UserError) as error:
        import_folder(folder, target)
    assert f"{folder}/{name}" in str(error.value)
    assert not target.exists()
    return str(error.value)


@pytest.fixture
def copied(whole, tmp_path):
    return lambda kind: Path(shutil.copytree(whole[kind], tmp_path / "theirs"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_named_with_what_it_seems_to_be(copied, name, what, tmp_path):
    import re

    folder = copied(FILES[name])
    content, words = BROKEN[what]
    (folder / name).write_bytes(content)
    said = refused(folder, tmp_path / "ours", name)
    assert re.search(words, said), said


@pytest.mark.parametrize("name", FILES)
def test_a_folder_or_a_link_to_nothing_in_a_file_s_place_is_named(copied, name, tmp_path):
    folder = copied(FILES[name])
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    assert "a folder" in refused(folder, tmp_path / "ours", name)
    (folder / name).rmdir()
    (folder / name).symlink_to("../../blobs/0")
    assert "a link to ../../blobs/0, which isn't there" in refused(folder, tmp_path / "ours", name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_named(copied, name, share, tmp_path):
    folder = copied(FILES[name])
    content = (folder / name).read_bytes().rstrip()
    (folder / name).write_bytes(content[: max(1, int(share * len(content)))])
    assert "Download it again" in refused(folder, tmp_path / "ours", name)


@pytest.mark.parametrize("name", list(FILES)[:5])
def test_whatever_happens_to_a_file_is_said_in_our_words(copied, name, tmp_path):
    """Flipped, left out, repeated: the import works or is refused, and no library's error comes through."""
    folder, draw = copied(FILES[name]), random.Random(name)
    whole = (folder / name).read_bytes()
    for number in range(40):
        content = bytearray(whole)
        reach = draw.choice([16, 600, len(whole)])
        for _ in range(draw.choice([1, 1, 9])):
            at = draw.randrange(min(reach, len(content)))
            change = draw.choice(["flip", "leave out", "repeat"])
            if change == "flip":
                content[at] = draw.randrange(256)
            elif change == "leave out":
                del content[at : at + draw.randint(1, 9)]
            else:
                content[at:at] = content[at : at + 9]
        (folder / name).write_bytes(content)
        try:
            import_folder(folder, tmp_path / f"ours-{number}")
            Tokenizer(tmp_path / f"ours-{number}").encode("fox")
        except UserError:
            pass


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "wide"),
        ("hidden_size", True),
        ("hidden_size", 16.5),
        ("num_hidden_layers", [1]),
        ("num_hidden_layers", 0),
        ("num_attention_heads", -2),
        ("rms_norm_eps", "small"),
        ("rope_parameters", [1]),
        ("rope_parameters", {"rope_type": "linear", "factor": "x"}),
        ("rope_parameters", {"rope_type": "llama3", "factor": 2.0}),
        ("tie_word_embeddings", "yes"),
        ("architectures", "LlamaForCausalLM2"),
        ("architectures", [3]),
        ("vocab_size", -1),
        ("vocab_size", None),
        ("num_hidden_layers", 10**9),
        ("eos_token_id", "x"),
        ("eos_token_id", ["x", None]),
        ("bos_token_id", [1]),
    ],
)
def test_a_key_of_another_kind_is_refused(copied, key, value, tmp_path):
    folder = copied("bytes")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write(folder, "config.json", config | {key: value})
    with pytest.raises(UserError):
        import_folder(folder, tmp_path / "ours")


@pytest.mark.parametrize("ids", [640, [2, 640], -1])
def test_an_end_that_is_no_token_of_the_model_is_refused(copied, tmp_path, ids):
    folder = copied("bytes")
    write(folder, "generation_config.json", {"eos_token_id": ids})
    with pytest.raises(
        UserError, match=r"eos_token_id = (640 in .* none of the model's 640 tokens|-1 is no token's id)"
    ):
        import_folder(folder, tmp_path / "ours")


def test_special_tokens_that_are_no_list_are_refused(copied, tmp_path):
    folder = copied("bytes")
    about = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    write(folder, "tokenizer_config.json", about | {"additional_special_tokens": 5})
    assert "must be a list" in refused(folder, tmp_path / "ours", "tokenizer_config.json")


def test_an_index_is_checked_before_its_files_are_opened(copied, tmp_path):
    folder = copied("bytes")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    names = list(load_file(folder / "part.safetensors"))
    index = "model.safetensors.index.json"
    for content in ({}, {"weight_map": []}, {"weight_map": {"a": 3}}):
        write(folder, index, content)
        assert "weight_map" in refused(folder, tmp_path / "ours", index)
    write(folder, index, {"weight_map": dict.fromkeys(names, "../theirs/part.safetensors")})
    assert "leads to a file inside the folder" in refused(folder, tmp_path / "ours", index)
    save_file(load_file(folder / "part.safetensors"), folder / "more.safetensors")
    write(folder, index, {"weight_map": dict.fromkeys(names, "part.safetensors") | {"x": "more.safetensors"}})
    with pytest.raises(UserError, match="another file both hold"):
        import_folder(folder, tmp_path / "ours")
    write(folder, index, {"weight_map": dict.fromkeys(names, "part.safetensors")})
    import_folder(folder, tmp_path / "ours")


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_weights_that_are_no_floats_are_refused(copied, dtype, tmp_path):
    folder = copied("bytes")
    weights = {n: w.to(dtype) for n, w in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match="is of dtype"):
        import_folder(folder, tmp_path / "ours")


def test_our_own_folder_is_read_with_the_same_care(copied, tmp_path):
    import_folder(copied("bytes"), tmp_path / "ours")
    for name, load in (("model.safetensors", load_model), ("config.json", load_config), ("tokenizer.json", Tokenizer)):
        content = (tmp_path / "ours" / name).read_bytes()
        for broken in (b"", content[: len(content) // 2], BROKEN["a page"][0]):
            (tmp_path / "ours" / name).write_bytes(broken)
            with pytest.raises(UserError, match=name):
                load(tmp_path / "ours")
        (tmp_path / "ours" / name).write_bytes(content)
