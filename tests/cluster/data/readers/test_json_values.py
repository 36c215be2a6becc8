"""JSON that isn't in lines is read value by value, and what is none costs itself only."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.data.readers.json_values import parse, values
from cluster.data.readers.reading import read_jsonl

LIMIT = 1_000_000
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
)


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def texts(data: bytes, size: int = 7, limit: int = LIMIT) -> list:
    """(position, text or reason) of each record."""
    found = read_jsonl(iter(pieces(data, size)), "text", None, limit)
    return [(r.position, r.text if r.reason is None else r.reason) for r in found]


A, B = {"text": 'a, "]" \\ \n}'}, {"text": "b", "more": [{"x": [1, 2]}, "]"]}


@pytest.mark.parametrize("indent", [None, 0, 1])
@pytest.mark.parametrize("before", ["", "\ufeff", " \n\n"])
def test_an_array_is_read_as_its_elements(indent, before):
    text = before + json.dumps([A, B], indent=indent, ensure_ascii=False) + "\n"
    for size in (1, 2, 7, 1000):
        assert texts(text.encode(), size) == [(1, A["text"]), (2, "b")]


def test_objects_over_several_lines_are_read_and_an_array_may_be_followed_by_lines():
    pretty = f"{json.dumps(A, indent=1)}\n{json.dumps(B, indent=1)}\n"
    for size in (1, 7, 1000):
        assert texts(pretty.encode(), size) == [(1, A["text"]), (2, "b")]
        assert texts(pretty.encode()[:-5], size) == [(1, A["text"]), (2, "truncated")]
        assert texts(f"{pretty}{json.dumps([A])}".encode(), size)[2] == (3, A["text"])
    lines = f"[1, 2]\n{json.dumps([A])}\n{json.dumps(B)}\n"
    assert [text for _, text in texts(lines.encode())] == ["not_object", "not_object", "b"]
    assert [text for _, text in texts(lines.encode()[7:])] == [A["text"], "b"]


@pytest.mark.parametrize(
    "text",
    [
        '{"id": 1,\n "text": "a"}\n{"id": 2, "text": "b"}\n',
        '{"id": 1, "tags": [\n{"x": 1}\n], "text": "a"}\n\n{"text":\n"b"}',
        '{"id": 1,\n\n"text": "a"\n} {"text": "b"}\n',
        '{"text": "a", "more": {\n}}\n{"text": "b",\n"id": 2}',
    ],
)
def test_an_object_may_go_over_several_lines_wherever_they_break(text):
    for size in (1, 3, 1000):
        assert [found for _, found in texts(text.encode(), size)] == ["a", "b"]


def test_a_line_that_was_torn_after_a_comma_costs_itself_only():
    assert [found for _, found in texts(b'{"text": "a",\n{"text": "b"}\n')] == ["invalid_json", "b"]


@settings(max_examples=60)
@given(st.lists(JSON).map(lambda more: [{}, *more]), st.sampled_from([None, 0, 2]), st.integers(1, 40))
def test_every_element_of_every_array_comes_out_as_it_went_in(elements, indent, size):
    data = json.dumps(elements, indent=indent).encode()
    assert [parse(value.data) for value in values(iter(pieces(data, size)), LIMIT)] == elements


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b'[{"text": "a"}, {"text": }, {"text": "c"}]', ["a", "invalid_json", "c"]),
        (b'[{"text": "a"}, 3, null, "x", [1], {"text": "\xff"}]', ["a", *["not_object"] * 4, "invalid_utf8"]),
        (b'["a", {"text": "b"}]', ["not_object", "b"]),
        (b'[\n "a",\n "b, [c"\n]\n', ["not_object"] * 2),
        (b'[[{"text": "a"}]]', ["not_object"]),
        (b"1" * 5000, ["not_object"]),
        (b'[{"text": "a"}, {"text": "b', ["a", "truncated"]),
        (b'[{"text": "a"}', ["truncated"]),
        (b'[{"text": "a"},', ["a", "truncated"]),
        (b"[]", ["not_object"]),
        (b"[ 1, 2\n]", ["invalid_json"] * 2),
        (b"[", ["invalid_json"]),
        (b'[\n {"text": "a"}\n,\n', ["a", "truncated"]),
        (b"{\n", ["truncated"]),
        (b"{", ["invalid_json"]),
        (b'{"text": "cut\n{"text": "b"}\n', ["invalid_json", "b"]),
        (b'{"data": [{"text": "a"}]}', ["missing_text"]),
    ],
)
def test_what_is_wrong_costs_itself_and_says_why(data, found):
    for size in (1, 1000):
        assert [text for _, text in texts(data, size)] == found


def test_a_giant_element_is_too_long_in_flat_memory_and_the_next_is_read():
    def chunks():
        yield b'[{"text": "'
        for _ in range(50):
            yield b"x" * (1 << 20)
        yield b'"}, {"text": "next"}]'

    tracemalloc.start()
    found = list(read_jsonl(chunks(), "text", None, LIMIT))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [r.reason or r.text for r in found] == ["too_long", "next"]
    assert len(found[0].excerpt) <= 200 and peak < 8_000_000


def test_a_long_array_takes_about_as_long_as_its_lines():
    records = [{"text": "word " * 40, "n": i} for i in range(20_000)]
    took = []
    for data in ("\n".join(map(json.dumps, records)), json.dumps(records)):
        begin = time.process_time()
        assert sum(1 for _ in read_jsonl(iter(pieces(data.encode(), 1 << 20)), "text", None, LIMIT)) == 20_000
        took.append(time.process_time() - begin)
    assert took[1] < 5 * took[0] + 0.5


@pytest.mark.parametrize("digits", [10, 4300, 5000, 100_000])
def test_an_integer_of_any_length_is_read(digits):
    line = f'{{"n": {"7" * digits}, "m": -{"7" * digits}, "id": 12, "text": "a"}}'
    [record] = read_jsonl([line.encode()], "text", "id", LIMIT)
    assert (record.text, record.key) == ("a", "12")
    assert parse(line.encode())["n"] == (int("7" * digits) if digits <= 4300 else float("inf"))
