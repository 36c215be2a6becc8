import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import UserError
from cluster.verify.verifiers import VERIFIERS, check_task, verify


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
        ("format", "", "The answer is 1.000,50.", 1),
        ("format", "St. Louis", "The answer is St. Louis.", 1),
        ("format", "St. Louis", "The answer is St. Paul.", 0),
    ],
)
def test_a_completion_gets_what_it_deserves(verifier, answer, text, expected):
    assert reward(verifier, answer, text) == expected


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
        ({"answer": "1", "verifier": {"number": -1, "format": 2}}, "0 or more, not -1"),
        ({"answer": "1", "verifier": {"number": 0}}, "weights"),
        ({"answer": "1", "verifier": {"number": "0.9"}}, "must be a number of 0 or more, not '0.9'"),
        ({"answer": "1", "verifier": {"number": None}}, "not None"),
        ({"answer": "1", "verifier": {"number": True}}, "not True"),
        ({"answer": "1", "verifier": {"number": float("nan")}}, "not nan"),
        ({"answer": "1", "verifier": {"number": float("inf")}}, "not inf"),
        ({"answer": "1", "verifier": None}, "a name .* not None; without it, it is exact"),
        ({"answer": "1", "verifier": ["number"]}, "a name .* not "),
        ({"answer": "1", "verifier": 3}, "a name .* not 3"),
        ({"answer": None}, 'needs an "answer"'),
        ({"answer": True}, 'needs an "answer"'),
        ({"answer": ["1"]}, 'needs an "answer"'),
    ],
)
def test_a_task_that_cannot_be_verified_is_refused(task, message):
    with pytest.raises(UserError, match=message):
        verify(task, "1")
    with pytest.raises(UserError, match=message):
        check_task(task)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"answer": "five", "verifier": "number"}, "'five' is no number"),
        ({"answer": "3 or 4", "verifier": "number"}, "no number"),
        ({"answer": "five", "verifier": {"number": 0.01, "format": 0.99}}, "no number"),
        ({"answer": "3-4", "verifier": {"number": 0.5, "format": 0.5}}, "no number"),
        ({"answer": "12:30", "verifier": "number"}, "no number"),
        ({"answer": "5 km", "verifier": "number"}, "Write the number alone"),
        ({"answer": "1/0", "verifier": "number"}, "no number"),
        ({"answer": "1e999999999", "verifier": "number"}, "no number"),
        ({"answer": "9" * 5000, "verifier": "number"}, "60 digits"),
        ({"answer": float("nan"), "verifier": "number"}, "no number"),
        ({"answer": float("inf"), "verifier": "number"}, "no number"),
        ({"answer": "", "verifier": "number"}, "no number"),
        ({"answer": "__import__('os').system('false')", "verifier": "number"}, "no number"),
        ({"answer": "a\nb", "verifier": "answer"}, "one line"),
        ({"answer": "5", "verifier": {"exact": 0.5, "format": 0.5}}, "one line"),
        ({"answer": "x" * 5000, "verifier": "exact"}, "4000 characters"),
    ],
)
def test_a_task_whose_own_answer_is_not_rewarded_is_refused(task, message):
    with pytest.raises(UserError, match=message):
        check_task(task)
    assert verify(task, str(task["answer"])) < 1, "and a completion never raises"


@pytest.mark.parametrize("verifier", [*VERIFIERS, {"number": 0.9, "format": 0.1}, {"answer": 0.9, "format": 0.1}])
@pytest.mark.parametrize(
    "answer", ["1/2", "50%", "$5", "1,5", "1 000", "1.000,50", "−3", "1e-3", "2 1/2", "½", 5, -0.5]
)
def test_an_answer_as_people_write_it_is_rewarded(verifier, answer):
    check_task({"answer": answer, "verifier": verifier})


@pytest.mark.parametrize("name", ["arithmetic", "parity", "sort", "reverse"])
def test_every_generated_task_can_be_rewarded(name):
    from cluster.data.examples import generated

    for task in generated.tasks(f"generated://{name}?n=20"):
        check_task(task)
