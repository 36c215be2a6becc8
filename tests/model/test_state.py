"""The state's contract, for every mixer: rows are joined, chosen, dropped and set back, and go on as if alone."""

import pytest
import torch
from small_models import SHAPES, lively, random_tokens

from model.decoder import Decoder
from model.segments import Segments
from model.state import State

TOKENS = random_tokens(6, 64, seed=7)
LIVELY = {name: lively(config) for name, config in SHAPES.items()}


@pytest.fixture(params=LIVELY.values(), ids=list(LIVELY))
def model(request) -> Decoder:
    return request.param


@torch.no_grad()
def prefilled(model: Decoder, rows: list[int], lengths: list[int], capacity: int, kv_dtype=None) -> State:
    """A state of these rows of TOKENS, each after its own number of tokens."""
    lengths_B, longest = torch.tensor(lengths), max(lengths)
    state = model.new_state(len(rows), capacity, kv_dtype=kv_dtype)
    return model(TOKENS[rows, :longest], segments=Segments.padded(lengths_B, longest), state=state)[1]


@torch.no_grad()
def absorb(model: Decoder, state: State, rows: list[int], counts: list[int]) -> tuple[torch.Tensor, State]:
    """Each row's next `counts` tokens, padded with another row's."""
    at = state.lengths_B[:, None] + torch.arange(max(counts))
    real = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    tokens = torch.where(real, TOKENS[torch.tensor(rows)[:, None], at.clamp(max=63)], 5)
    segments = None if len(set(counts)) == 1 else Segments.padded(torch.tensor(counts), max(counts))
    return model(tokens, segments=segments, state=state)


@torch.no_grad()
def check_goes_on(model: Decoder, state: State, rows: list[int]) -> None:
    """Each row's next three tokens, one and then two at once, as in one forward pass over its whole text."""
    before = state.lengths_B.tolist()
    first, state = absorb(model, state, rows, [1] * len(rows))
    more, state = absorb(model, state, rows, [2] * len(rows))
    hidden = torch.cat((first, more), 1)
    for i, (row, length) in enumerate(zip(rows, before, strict=True)):
        full, _ = model(TOKENS[row : row + 1, : length + 3])
        torch.testing.assert_close(hidden[i], full[0, length:], atol=1e-4, rtol=1e-3)


def test_a_state_holds_no_more_memory_than_it_says(model):
    """No tensor of it is a view of what its tokens were on the way."""

    def storages(held) -> int:
        if isinstance(held, torch.Tensor):
            return held.untyped_storage().nbytes()
        parts = vars(held).values() if hasattr(held, "__dict__") else held if isinstance(held, list | tuple) else ()
        return sum(map(storages, parts))

    state = prefilled(model, [0, 1], [33, 33], 40)
    assert storages(state.layers) == state.nbytes == model.new_state(2, 40).nbytes


def test_joined_rows_go_on_as_each_alone(model):
    """Of states with rooms and lengths of their own, as they come from prompts of their own."""
    parts = [([0, 1], [9, 2], 13), ([2], [17], 40), ([3, 4], [3, 6], 12)]
    states = [prefilled(model, *part) for part in parts]
    joined = State.join(states)
    assert joined.lengths_B.tolist() == [9, 2, 17, 3, 6] and joined.capacity == 40 and joined.longest == 17
    check_goes_on(model, joined, [0, 1, 2, 3, 4])
    for (rows, _, _), state in zip(parts, states, strict=True):
        check_goes_on(model, state, rows)


def test_pads_need_no_room(model):
    """A long row's pads lie past what it has room for, and past the model's context."""
    state = prefilled(model, [0, 1], [58, 40], 61)
    hidden, state = absorb(model, state, [0, 1], [1, 12])
    full, _ = model(TOKENS[1:2, :52])
    torch.testing.assert_close(hidden[1], full[0, 40:], atol=1e-4, rtol=1e-3)
    state.longest = 59
    check_goes_on(model, state.select(torch.tensor([1])), [1])
    _, state = absorb(model, state, [0, 1], [1, 1])
    full, _ = model(TOKENS[:1, :61])
    hidden, _ = absorb(model, state, [0, 1], [1, 1])
    torch.testing.assert_close(hidden[0, 0], full[0, 60], atol=1e-4, rtol=1e-3)


def test_rows_leave_and_others_take_their_places(model):
    state = prefilled(model, [0, 1, 2, 3], [9, 2, 17, 5], 30)
    order = state.drop([1, 3])
    assert sorted(order) == [0, 2] and state.rows == 2
    _, state = absorb(model, state, order, [1, 1])
    state.append(prefilled(model, [4], [11], 64))
    check_goes_on(model, state, [*order, 4])
    state = prefilled(model, [0, 1], [5, 6], 10)
    assert state.drop([0, 1]) == [] and state.rows == 0 and state.longest == 0
    state.append(prefilled(model, [5], [4], 10))
    check_goes_on(model, state, [5])


def test_what_fits_the_reserved_room_moves_no_row():
    """A row that comes or goes is copied, and no other one."""
    model = LIVELY["llama"]
    state = prefilled(model, [0, 1, 2], [9, 4, 6], 20)
    state.reserve(5, 40)
    held = [layer.k.parts[0].data_ptr() for layer in state.layers]
    state.drop([0])
    state.append(prefilled(model, [3], [7], 30))
    state.append(prefilled(model, [4, 5], [2, 3], 40))
    assert [layer.k.parts[0].data_ptr() for layer in state.layers] == held
    check_goes_on(model, state, [2, 1, 3, 4, 5])


@pytest.mark.parametrize("kept", [[0, 0, 0], [6, 1, 4], [2, 0, 6], [5, 2, 4]], ids=str)
def test_a_state_set_back_goes_on_as_a_fresh_prefill(model, kept):
    """Three forward passes since the mark, the second one ragged; a window comes round in between."""
    lengths = [9, 2, 17]
    state = prefilled(model, [0, 1, 2], lengths, 40)
    state.mark()
    _, state = absorb(model, state, [0, 1, 2], [2, 2, 2])
    _, state = absorb(model, state, [0, 1, 2], [3, 0, 1])
    _, state = absorb(model, state, [0, 1, 2], [1, 1, 3])
    back = torch.tensor(lengths) + torch.tensor(kept).clamp(max=state.lengths_B - torch.tensor(lengths))
    state.rewind(back)
    assert state.lengths_B.tolist() == back.tolist() and state.longest == int(back.max())
    check_goes_on(model, state, [0, 1, 2])


def test_choosing_joining_and_setting_back_compose(model):
    state = State.join([prefilled(model, [0, 1], [9, 2], 13), prefilled(model, [2], [17], 40)])
    state.mark()
    _, state = absorb(model, state, [0, 1, 2], [4, 4, 4])
    state.rewind(torch.tensor([10, 6, 18]))
    state = state.select(torch.tensor([2, 0]))
    state.mark()
    _, state = absorb(model, state, [2, 0], [3, 3])
    state.rewind(torch.tensor([19, 13]))
    state.append(prefilled(model, [5], [4], 30))
    order = state.drop([0])
    assert order == [2, 1]
    check_goes_on(model, state, [5, 0])


def test_a_state_can_not_be_set_back_to_where_it_never_was():
    state = prefilled(LIVELY["mamba2-hybrid"], [0, 1], [5, 3], 20)
    with pytest.raises(ValueError, match="keeps no earlier state"):
        state.rewind(torch.tensor([4, 3]))
    state.mark()
    with pytest.raises(ValueError, match=r"\[5, 3\] tokens, marked at \[5, 3\], can't be rewound to \[4, 3\]"):
        state.rewind(torch.tensor([4, 3]))
    with pytest.raises(ValueError, match="can't be rewound"):
        state.rewind(torch.tensor([6, 3]))
    free = prefilled(LIVELY["llama"], [0, 1], [5, 3], 20)
    free.rewind(torch.tensor([2, 3]))
    check_goes_on(LIVELY["llama"], free, [0, 1])


def test_a_ring_set_back_needs_a_mark():
    state = prefilled(LIVELY["window"], [0], [9], 20)
    with pytest.raises(ValueError, match="unless it is told to by `mark`"):
        state.rewind(torch.tensor([8]))


@pytest.mark.parametrize("name", ["llama", "gqa-qk-norm", "window", "window-gqa-global"])
@torch.no_grad()
def test_keys_and_values_in_int8_change_logits_little_and_take_a_third_of_the_room(name):
    model = LIVELY[name]
    exact, small = (prefilled(model, [0, 1, 2], [9, 2, 17], 40, kv) for kv in (None, torch.int8))
    D = model.config.head_dim
    assert small.nbytes < exact.nbytes and small.nbytes == exact.nbytes * (D + 4) // (4 * D)
    for counts in ([1, 1, 1], [4, 4, 4]):
        expected, exact = absorb(model, exact, [0, 1, 2], counts)
        found, small = absorb(model, small, [0, 1, 2], counts)
        expected, found = (model.logits(x).log_softmax(-1) for x in (expected, found))
        assert not torch.equal(found, expected)
        assert float((found - expected).abs().max()) < 0.05 * float(expected.std())
    small.mark()
    before = small.lengths_B
    again = [absorb(model, small, [0, 1, 2], [3, 3, 3])]
    again[0][1].rewind(before)
    again.append(absorb(model, again[0][1], [0, 1, 2], [3, 3, 3]))
    assert torch.equal(again[0][0], again[1][0]), "what a ring gives back is what it held"
