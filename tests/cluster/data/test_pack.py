import hashlib
import json

import numpy as np
import pytest

from cluster.data.held_out import text_hash
from cluster.data.pack import file_names
from cluster.data.rows import TokenRows
from cluster.data.split import SALT
from cluster.data.summaries import TokensSummary
from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.errors import UserError
from tests.cluster.data import given

DOCUMENTS = [*given.some_documents(), ("a/b é", "Only here.\n"), ("a/b é", "Only there.\n")]


def digests(artifact):
    folder = artifact.path()
    names = (n for n in artifact.manifest.files if n != "events.jsonl")
    return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names}


def texts(artifact, tokenizer, split):
    """{source: [text of each document]} read back from the files alone."""
    folder = artifact.path()
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    found = {}
    for source, splits in index["sources"].items():
        found[source] = []
        for shard in splits[split]["shards"]:
            ids = np.memmap(folder / shard["file"], dtype=index["dtype"], mode="r")
            offsets = np.load(folder / shard["documents_file"])
            sizes = np.load(folder / shard["bytes_file"])
            assert offsets[-1] == len(ids) == shard["tokens"]
            assert len(sizes) == shard["documents"] == len(offsets) - 1
            for start, stop, size in zip(offsets[:-1], offsets[1:], sizes, strict=True):
                assert ids[start] == tokenizer.bos_id
                assert ids[stop - 1] == tokenizer.eos_id
                text = tokenizer.decode(ids[start:stop].tolist())
                assert len(text.encode()) == size
                found[source].append(text)
    return found


@pytest.fixture(scope="module")
def packed(ray_local, tmp_path_factory):
    store = tmp_path_factory.mktemp("pack")
    documents = given.given(DOCUMENTS)
    tokenizer = given.tokenizer_step(documents)
    step = given.pack_step(documents, tokenizer, validation_fraction=0.2, validation_min_kb=3, shard_mb=0.01)
    return given.make(step, store), Tokenizer(given.make(tokenizer, store).path())


def test_every_document_is_there_once_in_its_order_with_its_text_and_bytes(packed):
    artifact, tokenizer = packed
    train, validation = (texts(artifact, tokenizer, split) for split in ("train", "validation"))
    for source in {s for s, _ in DOCUMENTS}:
        mine = [text for s, text in DOCUMENTS if s == source]
        assert sorted(train[source] + validation[source]) == sorted(mine)
        assert train[source] == [t for t in mine if t in set(train[source])]
    assert any(len(parts["train"]["shards"]) > 1 for parts in rows_index(artifact)["sources"].values())


def rows_index(artifact):
    return json.loads((artifact.path() / "index.json").read_text(encoding="utf-8"))


def test_summary_counts_what_is_in_the_files(packed):
    artifact, tokenizer = packed
    train, validation = (texts(artifact, tokenizer, split) for split in ("train", "validation"))
    summary = artifact.summary
    assert summary["documents"] == sum(map(len, train.values()))
    assert summary["validation_documents"] == sum(map(len, validation.values()))
    assert summary["bytes"] + summary["validation_bytes"] == sum(len(t.encode()) for _, t in DOCUMENTS)
    assert summary["sources"]["prose"]["train"]["documents"] == len(train["prose"])


def test_held_out_texts_are_in_no_training_set_of_any_source(packed):
    artifact, tokenizer = packed
    train, validation = (texts(artifact, tokenizer, split) for split in ("train", "validation"))
    seen = {text for of_source in train.values() for text in of_source}
    held = {text for of_source in validation.values() for text in of_source}
    assert held and not seen & held
    copied = {t for s, t in DOCUMENTS if s == "code"} & {t for s, t in DOCUMENTS if s == "prose"}
    assert copied & held, "the case must occur here: a held-out text with a copy in another source"


def test_the_files_are_the_same_for_any_units_of_work(packed, tmp_path):
    artifact, _ = packed
    for group_bytes in (1500, 1 << 20):
        documents = given.given(DOCUMENTS, group_bytes)
        step = given.pack_step(
            documents, given.tokenizer_step(documents), validation_fraction=0.2, validation_min_kb=3, shard_mb=0.01
        )
        assert digests(given.make(step, tmp_path / str(group_bytes))) == digests(artifact)


def test_a_vocabulary_beyond_two_bytes_takes_four(packed, tmp_path, monkeypatch):
    from cluster.data import pack

    _, tokenizer = packed
    monkeypatch.setattr(tokenizer, "vocab_size", 70_000)
    assert pack.token_type(tokenizer) == np.dtype("<u4")
    monkeypatch.setattr(tokenizer, "vocab_size", 65_536)
    assert pack.token_type(tokenizer) == np.dtype("<u2")


def test_sources_with_odd_names_get_files_of_their_own():
    names = file_names(["prose", "a b", "a/b", "a_b", "..", "é"])
    assert names["prose"] == "prose"
    assert len(set(names.values())) == 6
    assert all(n.isascii() and "/" not in n and " " not in n for n in names.values())


def test_the_only_text_of_a_source_is_trained_on_but_for_its_end_which_is_held_out(packed, tmp_path):
    book, note = given.sentences(1, 60), "A note."
    documents = given.given([*DOCUMENTS, ("book", book), ("note", note), ("two", "A first one."), ("two", "One more.")])
    step = given.pack_step(documents, given.tokenizer_step(documents), validation_fraction=0.1)
    artifact = given.make(step, tmp_path)
    tokenizer = Tokenizer(given.make(step.inputs["tokenizer"], tmp_path).path())
    train, validation = (texts(artifact, tokenizer, split) for split in ("train", "validation"))
    [head], [end] = train["book"], validation["book"]
    assert head + end == book and 0.07 * len(book) < len(end) < 0.12 * len(book)
    assert (train["note"], validation["note"]) == ([note], [])
    assert len(train["two"]) == len(validation["two"]) == 1
    words = TokensSummary.read(artifact.summary).words()
    assert "; of the only text of book the end is held out; nothing is held out of note" in words


def test_a_source_whose_texts_are_all_held_out_elsewhere_is_refused(ray_local, tmp_path):
    two = [f"Copied text {i}." for i in range(2)]
    documents = given.given([*DOCUMENTS, *[("few", t) for t in two], *[("a", t) for t in two], *FILLERS])
    step = given.pack_step(documents, given.tokenizer_step(documents), validation_fraction=0.5)
    with pytest.raises(UserError, match="Source 'few' has nothing to train on: its 2 documents are all held out"):
        given.make(step, tmp_path)


# Texts with higher hashes than both copies: half of the source are those and more.
FILLERS = [
    ("a", t)
    for t in (f"A filler {i}." for i in range(40))
    if text_hash(t, SALT) > max(text_hash(f"Copied text {i}.", SALT) for i in range(2))
]


def test_no_documents_make_an_empty_artifact_that_readers_refuse_in_words(packed, ray_local, tmp_path):
    documents = given.given(DOCUMENTS)
    tokenizer = given.tokenizer_step(documents)
    artifact = given.make(given.pack_step(given.given([]), tokenizer), tmp_path)
    assert artifact.summary["tokens"] == 0
    with pytest.raises(ValueError, match="no training tokens"):
        TokenRows(artifact.path(), 16).batch(0, 4)
