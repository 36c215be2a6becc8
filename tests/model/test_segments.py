"""Regrouping a batch's tokens by document."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.segments import Segments, _ladder


@st.composite
def packings(draw):
    """Rows of one length, cut into documents anywhere."""
    length = draw(st.integers(1, 70))
    rows = draw(st.integers(1, 4))
    cuts = [draw(st.sets(st.integers(1, length - 1), max_size=10)) if length > 1 else set() for _ in range(rows)]
    edges = [[0, *sorted(c), length] for c in cuts]
    return [[b - a for a, b in pairwise(row)] for row in edges]


@settings(max_examples=80)
@given(packings())
def test_every_token_stands_once_in_its_document_s_row_and_padding_is_bounded(packing):
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in packing])
    segments = Segments.from_positions(positions)
    groups = segments.groups
    assert segments.whole == all(len(row) == 1 for row in packing)
    assert torch.equal(groups.index[groups.slot], torch.arange(positions.numel()))
    document = segments.starts_BT.flatten().cumsum(0)
    lengths, start = [], 0
    for count, width in groups.shapes:
        slots = groups.index[start : start + count * width].view(count, width)
        of = document[slots]
        assert bool((of == of[:, :1]).all()), "a row of a group holds one document only"
        size = torch.stack([(document == d).sum() for d in of[:, 0]])
        within = torch.arange(width)
        real = within < size[:, None]
        assert torch.equal(positions.flatten()[slots][real], within.expand_as(slots)[real])
        assert bool((width <= (1.5 * size).clamp(min=8)).all())
        lengths += size.tolist()
        start += count * width
    assert sorted(lengths) == sorted(n for row in packing for n in row)
    assert start == groups.index.numel()


def test_the_ladder_climbs_by_at_most_a_half():
    ladder = _ladder(5000)
    assert ladder[:6] == [8, 12, 16, 24, 32, 48] and ladder[-2] < 5000 <= ladder[-1]
    assert all(b <= 1.5 * a for a, b in pairwise(ladder))


def test_a_document_that_began_in_an_earlier_row_is_one_segment():
    segments = Segments.from_positions(torch.tensor([[57, 58, 59, 0, 1]]))
    assert segments.starts_BT.tolist() == [[True, False, False, True, False]]
