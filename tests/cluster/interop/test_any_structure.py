"""Any value of a folder's files may be any other: it runs, or is refused in words that name the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.errors import UserError
from cluster.interop.base import STAGE, find_base
from cluster.interop.huggingface import export_folder, import_folder
from cluster.serve.generator import Generator
from cluster.stage import Step, run_step
from cluster.store.artifact import Artifacts
from tests.cluster.data.tokenizer.their_tokenizers import write
from tests.cluster.interop.their_folder import KINDS, write_folder

DEEP: Any = []
for _ in range(400):
    DEEP = [DEEP]
ODD = [2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -1.5, 1e300]
TEXTS = ["", "(a+)+$", "(", "{{", "\ud800", "\x1b[31m", "../x", "LlamaForCausalLM", "BPE"]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.sampled_from(ODD), st.text(max_size=3), st.sampled_from(TEXTS)
)


def nested(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3))


VALUES = st.one_of(SCALARS, st.recursive(SCALARS, nested, max_leaves=5), st.just(DEEP))


def places(value: Any, at: tuple = (), deep: int = 5, wide: int = 6) -> Iterator[tuple]:
    """Paths to every value, of long lists and objects to some."""
    yield at
    if deep:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for number, (key, one) in enumerate(inner):
            if number < wide or (isinstance(value, dict) and len(value) < 60):
                yield from places(one, (*at, key), deep - 1, wide)


def replaced(value: Any, at: tuple, by: Any) -> Any:
    if not at:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(copy[at[0]], at[1:], by)
    return copy


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with each kind of tokenizer, of two shards, and one of ours."""
    found = {}
    for kind in KINDS:
        folder = found[kind] = tmp_path_factory.mktemp(kind)
        write_folder(folder, kind, max_shard_size="20KB")
        if kind == "sentencepiece":
            write(folder, "added_tokens.json", {})
        write(folder, "special_tokens_map.json", {"bos_token": "<s>", "additional_special_tokens": []})
    found["ours"] = tmp_path_factory.mktemp("ours") / "model"
    import_folder(found["bytes"], found["ours"])
    return found


THEIRS = {
    "bytes": ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
              "special_tokens_map.json", "model.safetensors.index.json"),
    "sentencepiece": ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"),
}  # fmt: skip


def use(folder: Path) -> None:
    """What `generate` does with a model's folder."""
    tokenizer = Tokenizer(folder)
    for text in ("a text, 12  of it", "a" * 200 + "!"):
        tokenizer.decode(tokenizer.encode(text, bos=True))
    Generator.load(str(folder))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in THEIRS.items() for name in names])
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_in_a_strangers_folder(
    kind: str, name: str, data: st.DataObject, wholes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Path(shutil.copytree(wholes[kind], tmp_path_factory.mktemp("x") / "theirs"))
    good = json.loads((folder / name).read_text(encoding="utf-8"))
    at = data.draw(st.sampled_from(sorted(places(good), key=str)))
    value = data.draw(VALUES)
    (folder / name).write_text(json.dumps(replaced(good, at, value)), encoding="utf-8")
    target = folder.with_name("ours")
    try:
        import_folder(folder, target)
    except UserError as error:
        assert str(folder) in str(error)
        assert not target.exists()
        return
    try:
        use(target)
        export_folder(target, folder.with_name("back"), None, 10**9)
    except UserError as error:
        assert str(target) in str(error)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_in_a_models_folder_of_ours(
    name: str, data: st.DataObject, wholes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Path(shutil.copytree(wholes["ours"], tmp_path_factory.mktemp("x") / "ours"))
    good = json.loads((folder / name).read_text(encoding="utf-8"))
    at = data.draw(st.sampled_from(sorted(places(good), key=str)))
    (folder / name).write_text(json.dumps(replaced(good, at, data.draw(VALUES))), encoding="utf-8")
    try:
        use(folder)
        export_folder(folder, folder.with_name("back"), None, 10**9)
    except UserError as error:
        assert str(folder) in str(error)


def split(safetensors: bytes) -> tuple[dict[str, Any], bytes]:
    """(the header of a safetensors file, its tensors' bytes)."""
    end = 8 + int.from_bytes(safetensors[:8], "little")
    return json.loads(safetensors[8:end]), safetensors[end:]


def joined(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("kind", ["bytes", "ours", "base"])
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_in_the_header_of_weights(
    kind: str, data: st.DataObject, wholes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = wholes["bytes" if kind == "bytes" else "ours"]
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("x") / "model"))
    weights = data.draw(st.sampled_from(sorted(folder.glob("*.safetensors"))))
    header, values = split(weights.read_bytes())
    at = data.draw(st.sampled_from(sorted(places(header), key=str)))
    weights.write_bytes(joined(replaced(header, at, data.draw(VALUES)), values))
    target = folder.with_name("ours")
    try:
        if kind == "bytes":
            import_folder(folder, target)
        elif kind == "base":
            run_step(Step("base", STAGE, find_base(str(folder)), {}), Artifacts(folder.with_name("store")))
        else:
            use(folder)
            export_folder(folder, folder.with_name("back"), None, 10**9)
    except UserError as error:
        assert str(folder) in str(error)
        assert not target.exists()


def test_a_pattern_that_never_ends_is_refused_in_words(wholes: dict[str, Path], tmp_path: Path) -> None:
    """The library panics, by an exception that is no Exception."""
    folder = Path(shutil.copytree(wholes["bytes"], tmp_path / "theirs"))
    file = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    write(folder, "tokenizer.json", file | {"pre_tokenizer": split})
    import_folder(folder, tmp_path / "ours")
    tokenizer = Tokenizer(tmp_path / "ours")
    with pytest.raises(UserError, match="retry-limit") as error:
        tokenizer.encode("a" * 5000 + "!")
    assert f"{tmp_path / 'ours' / 'tokenizer.json'} has a value that its library can't use" in str(error.value)
