from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.data.chat_rows import ChatRows, best_fit, next_tokens
from cluster.data.rows import IGNORE
from cluster.data.tokenizer.chat import parse, render
from cluster.data.tokenizer.training import TokenizerConfig, train
from tests.cluster.data.given import some_documents

ASSISTANTS = {"role": "assistant", "content": " A token."}


@pytest.fixture(scope="module")
def tokenizer():
    return train([text for _, text in some_documents()], TokenizerConfig(vocab_size=400))


def example(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_targets_are_the_next_ids_where_the_mask_is_one():
    tokens, targets = next_tokens([5, 6, 7, 8, 9], [0, 0, 1, 0, 1])
    assert tokens.tolist() == [5, 6, 7, 8]
    assert targets.tolist() == [IGNORE, 7, IGNORE, 9]
    tokens, targets = next_tokens([5, 6, 7, 8, 9], [0, 0, 1, 0, 1], ahead=0)
    assert tokens.tolist() == [5, 6, 7, 8, 9]
    assert targets.tolist() == [IGNORE, IGNORE, 7, IGNORE, 9]


def test_rows_to_fill_in_hold_whole_conversations_and_up_to_a_tail_of_eos(tokenizer):
    examples = [example(f"What is {i} + {i}?", f"{2 * i}.") for i in range(50)]
    rows = ChatRows(examples, tokenizer, 64, seed=1, ahead=0, tail=6)
    tails = []
    for tokens, targets, positions in zip(*rows.batch(0, len(rows)), strict=True):
        starts = [*np.flatnonzero(positions == 0).tolist(), len(tokens)]
        for start, stop in pairwise(starts):
            if tokens[start] == tokenizer.pad_id:
                continue
            ids, wanted = tokens[start:stop].tolist(), targets[start:stop].tolist()
            tail = ids.count(tokenizer.eos_id)
            tails.append(tail)
            assert ids[len(ids) - tail :] == [tokenizer.eos_id] * tail
            conversation = ids[: len(ids) - tail]
            ids_again, mask = render(tokenizer, parse(tokenizer, conversation))
            assert ids_again == conversation
            assert wanted == [i if m else IGNORE for i, m in zip(ids, [*mask, *[1] * tail], strict=True)]
    assert len(tails) == 50 and set(tails) == set(range(7))


@given(st.lists(st.integers(1, 50), max_size=60))
def test_best_fit_cuts_nothing_overfills_nothing_and_wastes_less_than_half(lengths):
    bins = best_fit(lengths, 50)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in b) for b in bins]
    assert max(sizes, default=0) <= 50
    assert all(a + b > 50 for n, a in enumerate(sizes) for b in sizes[n + 1 :])  # no two bins could be one


def test_the_longest_go_first_so_that_the_short_ones_fill_up():
    assert sorted(map(sorted, best_fit([3, 3, 3, 7, 7, 7], 10))) == [[0, 3], [1, 4], [2, 5]]


def test_best_fit_refuses_what_cannot_fit():
    with pytest.raises(ValueError, match="doesn't fit"):
        best_fit([3, 9], 8)


def test_an_epoch_of_rows_holds_every_example_once_with_its_own_positions(tokenizer):
    examples = [example(f"What is {i} + {i}?", f"{2 * i}.") for i in range(50)]
    rows = ChatRows(examples, tokenizer, 64, seed=1)
    batch = rows.batch(0, len(rows))
    found = []
    for tokens, targets, positions in zip(*batch, strict=True):
        starts = [*np.flatnonzero(positions == 0).tolist(), len(tokens)]
        for start, stop in pairwise(starts):
            if tokens[start] == tokenizer.pad_id:
                assert (targets[start:stop] == IGNORE).all()
                continue
            assert positions[start:stop].tolist() == list(range(stop - start))
            last = targets[stop - 1]
            found.append(parse(tokenizer, [*tokens[start:stop], last]))
            assert last == tokenizer.end_id
    assert sorted(map(str, found)) == sorted(str(e["messages"]) for e in examples)
    assert len(rows) < 50 / 2, "several examples share a row"


def test_every_world_size_reads_the_same_batches_and_epochs_differ(tokenizer):
    examples = [example(f"What is {i} + {i}?", f"{2 * i}.") for i in range(50)]
    rows = ChatRows(examples, tokenizer, 64, seed=1)
    for step in range(6):
        whole = rows.batch(step, 7)
        for world_size in (2, 3):
            parts = [rows.batch(step, 7, rank, world_size) for rank in range(world_size)]
            for field in range(3):
                assert np.array_equal(np.concatenate([p[field] for p in parts]), whole[field])
    first, second = (rows.batch(epoch, len(rows)).tokens.tolist() for epoch in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second)


def test_too_long_examples_are_cut_and_those_without_a_target_left_are_counted_out(tokenizer):
    long_answer, long_question = example("a", "fox " * 100), example("fox " * 100, "a")
    rows = ChatRows([example("a", "b"), long_answer, long_question], tokenizer, 32)
    assert (rows.examples, rows.truncated, rows.dropped) == (3, 2, 1)
    with pytest.raises(ValueError, match="None of 1 chat examples"):
        ChatRows([long_question], tokenizer, 32)
    with pytest.raises(ValueError, match="Chat example 1: Message 0"):
        ChatRows([example("a", "b"), {"messages": [ASSISTANTS]}], tokenizer, 32)


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_conversation_that_just_fits_is_not_counted_as_cut(tokenizer, ahead):
    one = example("What is 2 + 3?", "5.")
    length = len(render(tokenizer, one["messages"])[0]) - ahead
    assert ChatRows([one], tokenizer, length, ahead=ahead).truncated == 0
    assert ChatRows([one], tokenizer, length - 1, ahead=ahead).truncated == 1
