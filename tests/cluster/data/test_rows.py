from itertools import pairwise

import numpy as np
import pytest

from cluster.data.rows import IGNORE, TokenRows
from cluster.data.tokenizer.tokenizer import Tokenizer
from tests.cluster.data import given

T = 32


@pytest.fixture(scope="module")
def packed(ray_local, tmp_path_factory):
    store = tmp_path_factory.mktemp("rows")
    documents = given.given(given.some_documents())
    tokenizer = given.tokenizer_step(documents)
    step = given.pack_step(documents, tokenizer, validation_fraction=0.2, shard_mb=0.003)  # many shards
    return given.make(step, store).path(), Tokenizer(given.make(tokenizer, store).path())


def documents_of(folder, source, split):
    data = TokenRows(folder, T)._source(split, source)
    return [data.document(i)[0] for i in range(data.documents)]


def all_rows(rows, source):
    return [rows.row(source, n) for n in range(rows.rows[source])]


@pytest.mark.parametrize("ahead", [0, 1])
def test_an_epoch_predicts_every_token_but_bos_exactly_once(packed, ahead):
    folder, _ = packed
    rows = TokenRows(folder, T, ahead=ahead)
    for source in rows.sources:
        targets = np.concatenate([row.targets[row.targets != IGNORE] for row in all_rows(rows, source)])
        expected = np.concatenate([d[1:] for d in documents_of(folder, source, "train")])
        assert np.array_equal(targets, expected)


def test_no_target_crosses_from_one_document_to_the_next(packed):
    folder, tokenizer = packed
    rows = TokenRows(folder, T)
    for source in rows.sources:
        for row in all_rows(rows, source):
            assert (row.targets[row.tokens == tokenizer.eos_id] == IGNORE).all()
            assert not (row.targets == tokenizer.bos_id).any()
            following = row.targets[:-1] != IGNORE
            assert np.array_equal(row.targets[:-1][following], row.tokens[1:][following])


def test_with_nothing_ahead_a_target_is_the_token_itself_and_all_else_is_the_same(packed):
    folder, tokenizer = packed
    rows, own = TokenRows(folder, T), TokenRows(folder, T, ahead=0)
    for source in rows.sources:
        for row, other in zip(all_rows(rows, source), all_rows(own, source), strict=True):
            assert np.array_equal(row.tokens, other.tokens) and np.array_equal(row.positions, other.positions)
            given = np.isin(other.tokens, [tokenizer.bos_id, tokenizer.pad_id])
            assert np.array_equal(other.targets, np.where(given, IGNORE, other.tokens))


@pytest.mark.parametrize("ahead", [0, 1])
def test_positions_restart_with_each_document_and_each_row(packed, ahead):
    folder, tokenizer = packed
    rows = TokenRows(folder, T, ahead=ahead)
    for source in rows.sources:
        for row in all_rows(rows, source):
            assert row.positions[0] == 0
            steps = np.diff(row.positions)
            restarts = np.flatnonzero(steps != 1) + 1
            assert (row.positions[restarts] == 0).all()
            starts = [i for i in np.flatnonzero(row.tokens == tokenizer.bos_id) if i]
            padding = np.flatnonzero(row.tokens == tokenizer.pad_id)[:1]
            assert restarts.tolist() == sorted([*starts, *padding])


def test_boundaries_come_from_the_offsets_and_not_from_eos(packed, tmp_path):
    """Overwriting every eos by another token moves no boundary."""
    folder, tokenizer = packed
    import shutil

    copy = tmp_path / "tokens"
    shutil.copytree(folder, copy)
    for file in copy.glob("*.bin"):
        ids = np.fromfile(file, dtype="<u2")
        ids[(ids == tokenizer.eos_id) | (ids == tokenizer.bos_id)] = 300
        ids.tofile(file)
    for source in TokenRows(folder, T).sources:
        before, after = (all_rows(TokenRows(f, T), source) for f in (folder, copy))
        for one, other in zip(before, after, strict=True):
            assert np.array_equal(one.positions, other.positions)
            assert np.array_equal(one.targets == IGNORE, other.targets == IGNORE)


def test_every_world_size_reads_the_same_global_batches(packed):
    folder, _ = packed
    whole = TokenRows(folder, T, seed=3, weights={"prose": 2, "code": 1})
    for step in (0, 1, 17, 400):  # also beyond the first epoch
        expected = whole.batch(step, 10)
        assert expected.tokens.shape == (10, T)
        assert expected.tokens.dtype == np.int64
        for world_size in (2, 3, 4, 16):
            readers = [TokenRows(folder, T, seed=3, weights={"prose": 2, "code": 1}) for _ in range(world_size)]
            parts = [r.batch(step, 10, rank, world_size) for rank, r in enumerate(readers)]
            for field in range(3):
                assert np.array_equal(np.concatenate([p[field] for p in parts]), expected[field])


def test_the_first_epoch_reads_every_row_once(packed):
    folder, _ = packed
    rows = TokenRows(folder, T, weights={"prose": 1, "code": 0})
    count = rows.rows["prose"]
    seen = np.concatenate([rows.batch(step, 1).tokens for step in range(count)])
    expected = np.stack([row.tokens for row in all_rows(rows, "prose")])
    assert sorted(seen.tolist()) == sorted(expected.tolist())
    assert not np.array_equal(seen, expected)


def test_another_seed_is_another_order(packed):
    folder, _ = packed
    one, two = (np.concatenate([TokenRows(folder, T, seed=s).batch(i, 8).tokens for i in range(4)]) for s in (0, 1))
    assert not np.array_equal(one, two)


def test_a_source_smaller_than_a_row_is_filled_up_without_targets(packed):
    folder, tokenizer = packed
    rows = TokenRows(folder, 1 << 20)
    row = rows.row("prose", 0)
    used = sum(len(d) for d in documents_of(folder, "prose", "train"))
    assert (row.tokens[used:] == tokenizer.pad_id).all()
    assert (row.targets[used - 1 :] == IGNORE).all()
    assert row.positions[used] == 0


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("max_bytes", [None, 1000])
@pytest.mark.parametrize("length", [2, 32, 100_000])
def test_validation_scores_every_held_out_token_but_bos_exactly_once(packed, length, max_bytes, ahead):
    folder, tokenizer = packed
    rows = TokenRows(folder, length, ahead=ahead)
    for source in rows.sources:
        documents = list(rows.validation_documents(source, max_bytes))
        batches = list(rows.validation(source, batch_size=3, max_bytes=max_bytes))
        targets = np.concatenate([b.targets[b.targets != IGNORE] for b in batches])
        assert np.array_equal(targets, np.concatenate([d[1:] for d in documents]))
        text = "".join(tokenizer.decode(d.tolist()) for d in documents)
        if max_bytes is None:
            everything = documents_of(folder, source, "validation")
            assert sorted(map(tuple, documents)) == sorted(map(tuple, everything))
        else:
            assert len(text.encode()) >= max_bytes
            last = tokenizer.decode(documents[-1].tolist()).encode()
            assert len(text.encode()) - len(last) < max_bytes


def test_validation_rows_mark_where_documents_begin(packed):
    folder, tokenizer = packed
    rows = TokenRows(folder, 64)
    for batch in rows.validation("prose", batch_size=4):
        assert (batch.positions[batch.tokens == tokenizer.bos_id] == 0).all()
        assert (batch.targets[batch.tokens == tokenizer.pad_id] == IGNORE).all()
        inside = batch.targets[:, :-1] != IGNORE
        goes_on = np.diff(batch.positions, axis=1) == 1
        # a target is the next token of the row, or the document goes on in another row
        same = batch.targets[:, :-1] == batch.tokens[:, 1:]
        assert (same | ~inside | ~goes_on).all()


def test_validation_rows_with_nothing_ahead_hold_whole_documents(packed):
    folder, tokenizer = packed
    rows = TokenRows(folder, 4096, ahead=0)
    found = []
    for batch in rows.validation("prose", batch_size=4):
        for tokens, targets, positions in zip(*batch, strict=True):
            starts = [*np.flatnonzero(positions == 0).tolist(), len(tokens)]
            parts = [slice(a, b) for a, b in pairwise(starts) if tokens[a] != tokenizer.pad_id]
            assert all(np.array_equal(tokens[p][1:], targets[p][1:]) for p in parts)
            found += [tokens[p].tolist() for p in parts]
    assert found == [d.tolist() for d in rows.validation_documents("prose")]


def test_unigram_counts_count_the_training_targets(packed):
    folder, tokenizer = packed
    rows = TokenRows(folder, T)
    counts = rows.unigram_counts(tokenizer.vocab_size)
    targets = np.concatenate([r.targets[r.targets != IGNORE] for s in rows.sources for r in all_rows(rows, s)])
    assert np.array_equal(counts, np.bincount(targets, minlength=tokenizer.vocab_size))


def test_a_wrong_question_gets_an_answer_in_words(packed):
    folder, _ = packed
    with pytest.raises(ValueError, match="seq_len"):
        TokenRows(folder, 1)
    with pytest.raises(ValueError, match="no source 'web'"):
        next(TokenRows(folder, T).validation("web"))
    with pytest.raises(ValueError, match="rank 2 of 2"):
        TokenRows(folder, T).batch(0, 4, 2, 2)
    with pytest.raises(IndexError, match="no row"):
        TokenRows(folder, T).row("prose", 10**6)
