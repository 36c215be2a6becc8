"""What is held out of a source: by the texts' hashes, and of a source's only text its end."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.data.held_out import text_hash
from cluster.data.split import SALT, SHORTEST, Wanted, choose, cut_place, survey


def held_out(surveys, config):
    return choose(surveys, config).held_out


def pairs(n, size=100):
    rng = np.random.default_rng(0)
    return [(int(h), size) for h in rng.integers(0, 2**63, n, dtype=np.uint64) * 2]


def test_whether_a_text_is_held_out_does_not_depend_on_the_others_where_the_source_is_large():
    config = Wanted(fraction=0.1, min_kb=1)
    few, many = pairs(2000), pairs(5000)
    assert few == many[:2000]
    held_few = set(held_out([{"a": survey(few, config)}], config).tolist())
    held_many = set(held_out([{"a": survey(many, config)}], config).tolist())
    assert held_few == held_many & {h for h, _ in few}
    assert 150 < len(held_few) < 250


def test_a_small_source_holds_out_its_minimum_but_at_most_half():
    config = Wanted(fraction=0.001, min_kb=2)
    assert len(held_out([{"a": survey(pairs(100), config)}], config)) == 20  # 2000 bytes
    assert len(held_out([{"a": survey(pairs(10), config)}], config)) == 5
    assert len(held_out([{"a": survey(pairs(1), config)}], config)) == 0
    apart = [{"a": survey(pairs(100)[i : i + 10], config)} for i in range(0, 100, 10)]
    whole = held_out([{"a": survey(pairs(100), config)}], config)
    assert np.array_equal(held_out(apart, config), whole)


def grouped(pairs, config, size=7):
    """The surveys of row groups of so many documents."""
    return [{"a": survey(pairs[i : i + size], config)} for i in range(0, len(pairs), size)]


@pytest.mark.parametrize("min_kb", [0.75, 2, 4.95, 5, 100])
def test_copies_do_not_count_twice_for_the_minimum_nor_for_the_half(min_kb):
    """100 texts of 100 bytes: 8, 20, 50 and 50 of them make the minimum, or are half of them."""
    config = Wanted(fraction=0.001, min_kb=min_kb)
    once = pairs(100)
    alone = held_out(grouped(once, config), config)
    assert len(alone) == min(math.ceil(min_kb * 10), 50)
    beside = [pair for pair in once for _ in range(3)]  # copies in one row group, and at its edges in two
    apart = [*once, *once, *once]
    lowest = [*once, *[min(once)] * 500]
    for copied in (beside, apart, lowest):
        assert np.array_equal(held_out(grouped(copied, config), config), alone)
        assert np.array_equal(held_out([{"a": survey(copied, config)}], config), alone)


def test_the_half_is_of_all_texts_where_a_row_group_has_more_than_can_matter():
    config = Wanted(fraction=0, min_kb=0.1)  # 100 bytes: of a row group 202 texts can matter
    many = pairs(1000, size=1)
    assert len(survey(many, config).hashes) == 202
    assert len(held_out(grouped(many, config, 500), config)) == 100
    assert len(held_out(grouped(many[:150], config, 50), config)) == 75


def test_nothing_is_held_out_at_zero():
    config = Wanted(fraction=0, min_kb=0)
    assert len(held_out([{"a": survey(pairs(50), config)}], config)) == 0
    assert len(held_out([], config)) == 0


def split_of(sources, wanted):
    """The split of {source: [text]}."""
    pairs = {s: [(text_hash(t, SALT), len(t.encode())) for t in texts] for s, texts in sources.items()}
    return choose([{s: survey(p, wanted) for s, p in pairs.items()}], wanted)


DEFAULT = Wanted(0.02, 64)
LONG = "".join(f"Line {i} of the only text.\n" for i in range(9000))


def test_of_a_source_s_only_text_the_end_is_held_out_whatever_else_there_is():
    alone = split_of({"a": [LONG]}, DEFAULT)
    head, end = alone.parts(LONG.encode())
    assert head + end == LONG.encode() and end.startswith(b"Line ")
    assert 48_000 < len(end) <= 64_000, "the minimum, from the next line on"
    beside = split_of({"a": [LONG, LONG], "b": [LONG, "Another.", "And one."], "c": ["Another."]}, DEFAULT)
    assert beside.parts(LONG.encode()) == (head, end), "its copies are cut at the same place, in every source"
    for one in ("Another.", "And one."):
        assert b"".join(beside.parts(one.encode())) == one.encode()


def test_a_text_that_is_held_out_of_one_source_is_cut_where_it_is_the_only_one_of_another():
    other = next(t for t in (f"Text number {i}. " + "x" * 100 for i in range(99)) if text_hash(t, SALT) < 2**62)
    low = next(t for t in (f"Low number {i}. " * 20 for i in range(999)) if text_hash(t, SALT) < text_hash(other, SALT))
    assert all(split_of({"a": [low, other]}, DEFAULT).parts(low.encode())) is False
    assert all(split_of({"a": [low, other], "b": [low]}, DEFAULT).parts(low.encode()))


@pytest.mark.parametrize("wanted", [DEFAULT, Wanted(0.02, 0), Wanted(0, 1), Wanted(0.5, 0), Wanted(0, 1e9)])
@settings(max_examples=200)
@given(text=st.text(st.sampled_from("a é漢🙂\n.。\u3000"), max_size=400))
def test_both_parts_of_a_cut_text_are_text_and_nothing_is_lost(wanted, text):
    data = text.encode()
    at = cut_place(data, wanted)
    head, end = data[:at].decode(), data[at:].decode()
    assert head + end == text
    if len(text.strip().encode()) >= 2 * SHORTEST + 8:
        assert head.strip() and end.strip()
        assert len(end.strip().encode()) <= len(text.strip().encode()) / 2
    if len(data) < 2 * SHORTEST:
        assert not end


def test_a_text_is_cut_from_64_bytes_on():
    assert [len(part) for part in split_of({"a": ["x" * 64]}, DEFAULT).parts(b"x" * 64)] == [32, 32]
    assert [len(part) for part in split_of({"a": ["x" * 63]}, DEFAULT).parts(b"x" * 63)] == [63, 0]


@settings(max_examples=100)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12), st.sampled_from([0.02, 0.3, 0.5]), st.sampled_from([0, 1])
)
def test_every_source_has_both_parts_as_long_as_it_has_enough_text(numbers, fraction, min_kb):
    texts = [f"Text {n}, which is long enough to be cut in two where there is no other one. {n}" for n in numbers]
    split = split_of({"a": texts}, Wanted(fraction, min_kb))
    parts = [split.parts(t.encode()) for t in texts]
    assert any(head for head, _ in parts) and any(end for _, end in parts)


def test_a_short_only_text_is_trained_on_and_nothing_of_it_held_out():
    assert split_of({"a": ["Too short."]}, DEFAULT).parts(b"Too short.") == (b"Too short.", b"")


def test_nothing_is_cut_where_nothing_is_to_be_held_out():
    assert split_of({"a": [LONG]}, Wanted(0, 0)).parts(LONG.encode()) == (LONG.encode(), b"")
