import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.verify.verifiers import VERIFIERS, verify


def reward(verifier, answer, text):
    return verify({"answer": answer, "verifier": verifier}, text)


@pytest.mark.parametrize(
    ("verifier", "answer", "text", "expected"),
    [
        ("exact", "a b", " a b\n", 1),
        ("exact", "a b", "a b.", 0),
        ("number", "85", "7+8=15, 3+4+1=8. The answer is 85.", 1),
        ("number", "85", "85", 1),
        ("number", "85", "It is 85!", 1),
        ("number", "85", "85 or 86", 0),
        ("number", "85", "The answer is 85. The answer is 86.", 0),
        ("number", "85", "The answer is 86. The answer is 85.", 1),
        ("number", "85", "The answer is 85 not 86", 1),
        ("number", "85", "The answer is not 86", 0),
        ("number", "85", "The answer is", 0),
        ("number", "85", "The answer is 850.", 0),
        ("number", "85", "The answer is 8 5.", 0),
        ("number", "-3", "The answer is -3.", 1),
        ("number", "-3", "The answer is \u22123.", 1),
        ("number", "3", "The answer is -3.", 0),
        ("number", "1234", "1,234", 1),
        ("number", "0.5", "answer: 0.50", 1),
        ("number", "85", "", 0),
        ("number", "85", "1" * 5000, 0),
        ("number", "85", "x85", 0),
        ("answer", "odd", "11011. The answer is odd.", 1),
        ("answer", "odd", "The answer is Odd", 1),
        ("answer", "odd", "The answer is even, not odd.", 0),
        ("answer", "odd", "odd", 0),
        ("answer", "012", "The answer is 012.", 1),
        ("answer", "012", "The answer is 12.", 0),
        ("format", "", "1+1=2. The answer is 2.", 1),
        ("format", "", "The answer is 3.5.", 1),
        ("format", "", "The answer is 2", 0),
        ("format", "", "The answer is .", 0),
        ("format", "", "The answer is 2. The answer is 2.", 0),
        ("format", "", "The answer is 2. So there.", 0),
    ],
)
def test_a_completion_gets_what_it_deserves(verifier, answer, text, expected):
    assert reward(verifier, answer, text) == expected


@settings(deadline=None)
@given(
    verifier=st.sampled_from([*VERIFIERS, {"number": 0.7, "format": 0.3}]),
    answer=st.text() | st.integers() | st.floats(),
    text=st.text() | st.text(alphabet="The answer is 0123456789.,-+eE\n\u0661²"),
)
def test_garbage_never_raises_and_stays_between_zero_and_one(verifier, answer, text):
    assert 0 <= reward(verifier, answer, text) <= 1


def test_a_long_completion_is_cheap_and_only_its_end_counts():
    assert reward("number", "7", "1" * 10_000_000 + " The answer is 7.") == 1
    assert reward("format", "7", "The answer is 7." + " answer" * 1_000_000) == 0


def test_verifiers_are_mixed_by_weight():
    both = {"number": 3, "format": 1}
    assert reward(both, "7", "The answer is 7.") == 1
    assert reward(both, "7", "The answer is 8.") == 0.25
    assert reward(both, "7", "7") == 0.75


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"answer": "1", "verifier": "nmber"}, "Did you mean 'number'"),
        ({"verifier": "number"}, 'needs an "answer"'),
        ({"answer": "1", "verifier": {}}, "weights"),
        ({"answer": "1", "verifier": {"number": -1, "format": 2}}, "weights"),
    ],
)
def test_a_task_that_cannot_be_verified_is_refused(task, message):
    with pytest.raises(ValueError, match=message):
        verify(task, "1")
