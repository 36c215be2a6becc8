"""A base model found, and its files as an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.errors import UserError
from cluster.interop.base import STAGE, find_base
from cluster.registry.find import FILES
from cluster.stage import Outcome, Step, run_step
from cluster.store.artifact import Artifacts
from model.checkpoint import load_model
from model.interop.convert import export_model
from model.tensors import load_tensors, save_tensors
from tests.cluster.their_chat_model import make_chat_model
from tests.cluster.tiny_model import make_model


def made(base: str | Path, store: Path) -> Outcome:
    return run_step(Step("base", STAGE, find_base(str(base)), {}), Artifacts(store))


def test_a_folder_of_ours_is_taken_as_it_is(tmp_path: Path) -> None:
    ours = make_model(tmp_path / "a model, 100%")
    outcome = made(ours, tmp_path / "store")
    for name in FILES:
        assert (outcome.artifact.path() / name).read_bytes() == (ours / name).read_bytes()
    assert outcome.summary.words() == f"{ours}: 38.3k parameters, context 64, our chat template"
    again = made(make_model(tmp_path / "copy"), tmp_path / "store")
    assert again.cached and again.artifact.fingerprint == outcome.artifact.fingerprint


def test_a_folder_of_theirs_and_its_shards_are_one_model(tmp_path: Path) -> None:
    theirs = make_chat_model(tmp_path / "theirs")
    folder = made(theirs, tmp_path / "store").artifact.path()
    assert Tokenizer(folder).template is not None
    sharded = tmp_path / "sharded"
    export_model(folder, sharded, {}, {}, None, 20_000)
    assert (sharded / "model.safetensors.index.json").exists()
    for path in theirs.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            (sharded / path.name).write_bytes(path.read_bytes())
    other = made(sharded, tmp_path / "store")
    assert not other.cached and "its own chat template" in other.summary.words()
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(load_model(other.artifact.path())(tokens)[0], load_model(folder)(tokens)[0])
    (sharded / "model-00001-of-00003.safetensors").unlink(missing_ok=True)
    for shard in sharded.glob("model-0000*"):
        shard.unlink()
    with pytest.raises(UserError, match="which is not there"):
        find_base(str(sharded))


def test_a_gguf_file_is_a_base(tmp_path: Path) -> None:
    from cluster.interop.gguf import export_gguf

    ours = make_model(tmp_path / "ours")
    export_gguf(ours, tmp_path / "m.gguf", "f32")
    folder = made(tmp_path / "m.gguf", tmp_path / "store").artifact.path()
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(load_model(folder)(tokens)[0], load_model(ours)(tokens)[0])


def test_its_identity_is_each_of_its_files(tmp_path: Path) -> None:
    def digests(folder: Path, change: Any) -> tuple[str, str]:
        before = find_base(str(folder)).digest
        change(folder)
        return before, find_base(str(folder)).digest

    def weights(folder: Path) -> None:
        tensors = load_tensors(folder / "model.safetensors")
        tensors["norm.weight"] = tensors["norm.weight"] * 2
        save_tensors(tensors, folder / "model.safetensors")

    def template(folder: Path) -> None:
        info = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        (folder / "tokenizer.json").write_text(json.dumps(info | {"adds_bos": False}), encoding="utf-8")

    for number, change in enumerate((weights, template)):
        before, after = digests(make_model(tmp_path / str(number)), change)
        assert before != after
    before, after = digests(make_model(tmp_path / "n"), lambda f: (f / "NOTES.md").write_text("x", encoding="utf-8"))
    assert before == after


def test_a_base_that_has_changed_since_the_recipe_was_read_is_refused(tmp_path: Path) -> None:
    ours = make_model(tmp_path / "ours")
    step = Step("base", STAGE, find_base(str(ours)), {})
    make_model(ours, seed=1)
    with pytest.raises(UserError, match="has changed since the recipe was read"):
        run_step(step, Artifacts(tmp_path / "store"))


def number(key: str, value: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {key: value}), encoding="utf-8")

    return change


def link(name: str) -> Any:
    def change(folder: Path) -> None:
        kept = folder.with_name(f"{folder.name}-kept")
        (folder / name).rename(kept)
        (folder / name).symlink_to(kept)

    return change


def weights_are(data: bytes) -> Any:
    return lambda folder: (folder / "model.safetensors").write_bytes(data)


ODD = {
    "layers": (number("n_layers", 10**9), "says 1000000000 layers"),
    "width": (number("d_model", 10**12), "says d_model = 1,000,000,000,000"),
    "another width": (number("d_ff", 48), "weights don't fit the config"),
    "a pickle": (weights_are(b"\x80\x02junk" * 99), "a Python pickle"),
    "a header of 2^62 bytes": (weights_are(b"\xff" * 7 + b"\x3f{"), "can't be read as a safetensors file"),
    **{f"a link for {name}": (link(name), "is a link to") for name in FILES},
}


@pytest.mark.parametrize("odd", ODD)
def test_a_strangers_folder_of_ours_is_refused_before_anything_is_copied(odd: str, tmp_path: Path) -> None:
    change, says = ODD[odd]
    change(make_model(tmp_path / "model"))
    with pytest.raises(UserError, match=says):
        find_base(str(tmp_path / "model"))


def test_the_model_inside_a_folder_of_mlflows_is_not_elsewhere(tmp_path: Path) -> None:
    make_model(tmp_path / "private")
    (tmp_path / "download" / "artifacts").mkdir(parents=True)
    (tmp_path / "download" / "artifacts" / "model").symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match="is a link to"):
        find_base(str(tmp_path / "download"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (number("hidden_size", 10**12), "says d_model"),
        (number("num_hidden_layers", 5000), "says 5000 layers"),
        (link("tokenizer.json"), "is a link to"),
    ],
)
def test_a_strangers_folder_of_theirs_is_refused_as_import_does(change: Any, says: str, tmp_path: Path) -> None:
    change(make_chat_model(tmp_path / "theirs"))
    with pytest.raises(UserError, match=says):
        find_base(str(tmp_path / "theirs"))
