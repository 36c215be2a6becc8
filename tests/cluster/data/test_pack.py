import hashlib
import json
import math

import numpy as np
import pytest

from cluster.data.pack import PackConfig, file_names, held_out_hashes, survey
from cluster.data.rows import TokenRows
from cluster.data.tokenizer.tokenizer import Tokenizer
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


def pairs(n, size=100):
    rng = np.random.default_rng(0)
    return [(int(h), size) for h in rng.integers(0, 2**63, n, dtype=np.uint64) * 2]


def test_whether_a_text_is_held_out_does_not_depend_on_the_others_where_the_source_is_large():
    config = PackConfig(validation_fraction=0.1, validation_min_kb=1)
    few, many = pairs(2000), pairs(5000)
    assert few == many[:2000]
    held_few = set(held_out_hashes([{"a": survey(few, config)}], config).tolist())
    held_many = set(held_out_hashes([{"a": survey(many, config)}], config).tolist())
    assert held_few == held_many & {h for h, _ in few}
    assert 150 < len(held_few) < 250


def test_a_small_source_holds_out_its_minimum_but_at_most_half():
    config = PackConfig(validation_fraction=0.001, validation_min_kb=2)
    assert len(held_out_hashes([{"a": survey(pairs(100), config)}], config)) == 20  # 2000 bytes
    assert len(held_out_hashes([{"a": survey(pairs(10), config)}], config)) == 5
    assert len(held_out_hashes([{"a": survey(pairs(1), config)}], config)) == 0
    apart = [{"a": survey(pairs(100)[i : i + 10], config)} for i in range(0, 100, 10)]
    whole = held_out_hashes([{"a": survey(pairs(100), config)}], config)
    assert np.array_equal(held_out_hashes(apart, config), whole)


def grouped(pairs, config, size=7):
    """The surveys of row groups of so many documents."""
    return [{"a": survey(pairs[i : i + size], config)} for i in range(0, len(pairs), size)]


@pytest.mark.parametrize("min_kb", [0.75, 2, 4.95, 5, 100])
def test_copies_do_not_count_twice_for_the_minimum_nor_for_the_half(min_kb):
    """100 texts of 100 bytes: 8, 20, 50 and 50 of them make the minimum, or are half of them."""
    config = PackConfig(validation_fraction=0.001, validation_min_kb=min_kb)
    once = pairs(100)
    alone = held_out_hashes(grouped(once, config), config)
    assert len(alone) == min(math.ceil(min_kb * 10), 50)
    beside = [pair for pair in once for _ in range(3)]  # copies in one row group, and at its edges in two
    apart = [*once, *once, *once]
    lowest = [*once, *[min(once)] * 500]
    for copied in (beside, apart, lowest):
        assert np.array_equal(held_out_hashes(grouped(copied, config), config), alone)
        assert np.array_equal(held_out_hashes([{"a": survey(copied, config)}], config), alone)


def test_the_half_is_of_all_texts_where_a_row_group_has_more_than_can_matter():
    config = PackConfig(validation_fraction=0, validation_min_kb=0.1)  # 100 bytes: of a row group 202 texts can matter
    many = pairs(1000, size=1)
    assert len(survey(many, config).hashes) == 202
    assert len(held_out_hashes(grouped(many, config, 500), config)) == 100
    assert len(held_out_hashes(grouped(many[:150], config, 50), config)) == 75


def test_nothing_is_held_out_at_zero():
    config = PackConfig(validation_fraction=0, validation_min_kb=0)
    assert len(held_out_hashes([{"a": survey(pairs(50), config)}], config)) == 0
    assert len(held_out_hashes([], config)) == 0


def test_sources_with_odd_names_get_files_of_their_own():
    names = file_names(["prose", "a b", "a/b", "a_b", "..", "é"])
    assert names["prose"] == "prose"
    assert len(set(names.values())) == 6
    assert all(n.isascii() and "/" not in n and " " not in n for n in names.values())


def test_no_documents_make_an_empty_artifact_that_readers_refuse_in_words(packed, ray_local, tmp_path):
    documents = given.given(DOCUMENTS)
    tokenizer = given.tokenizer_step(documents)
    artifact = given.make(given.pack_step(given.given([]), tokenizer), tmp_path)
    assert artifact.summary["tokens"] == 0
    with pytest.raises(ValueError, match="no training tokens"):
        TokenRows(artifact.path(), 16).batch(0, 4)
