"""What is held out is a function of a text and a salt, and stays what it was."""

import pytest

from cluster.align.split import one_in_ten
from cluster.data.examples.generated import held_out
from cluster.data.held_out import below, one_in, question, text_hash

TEXTS = [f"text {i} é" for i in range(4000)]


def test_the_hash_is_what_it_was():
    """Another hash would move documents between the parts of every store: the numbers are those of version 1."""
    assert text_hash("a text", "validation") == EXPECTED["validation"]
    assert text_hash("a text", "") == EXPECTED[""]
    assert text_hash("\ud800", "x") == text_hash(b"\xed\xa0\x80", "x")


EXPECTED = {"validation": 16124642322158477718, "": 5830437876521264211}


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
def test_a_share_holds_about_so_many_and_all_of_a_smaller_one(share):
    inside = {t for t in TEXTS if below(t, "salt", share)}
    assert abs(len(inside) - share * 4000) <= 4 * (share * (1 - share) * 4000) ** 0.5
    assert {t for t in TEXTS if below(t, "salt", share / 2)} <= inside


def test_uses_with_salts_of_their_own_hold_out_independently():
    first, second = ({t for t in TEXTS if one_in(10, t, salt)} for salt in ("one", "two"))
    assert 300 < len(first) < 500 and 300 < len(second) < 500
    assert len(first & second) < 80  # about 40


def test_problems_and_conversations_are_on_the_side_on_which_they_were():
    assert "".join(str(int(held_out("sort", str(i)))) for i in range(40)) == PROBLEMS
    asked = [{"messages": [{"role": "user", "content": str(i)}]} for i in range(40)]
    assert "".join(str(int(one_in_ten(item))) for item in asked) == CONVERSATIONS


PROBLEMS = "0000000000000101000000000001000000000000"
CONVERSATIONS = "0000000100000000000000000000000011100000"


def test_what_the_assistant_said_before_is_of_the_question_and_a_system_message_is_not():
    def asks(*turns):
        return question({"messages": [{"role": role, "content": content} for role, content in turns]})

    first, again = ("user", "Count."), ("user", "And on?")
    assert asks(first, ("assistant", "1, 2"), again) != asks(first, ("assistant", "1"), again) != asks(first, again)
    assert asks(("system", "Be brief."), first) == asks(first)
