import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.data.examples import generated, signatures
from cluster.data.examples.puzzles import addition, subtraction
from cluster.verify.verifiers import verify

FUNCTIONS = tuple(
    signatures.Function(f"m{i % 7}", f"f{i}", f"(a, b{i}=0)", f"Return the number {i} of the list of things.")
    for i in range(200)
)


@pytest.fixture(autouse=True)
def few_functions(monkeypatch):
    monkeypatch.setattr(signatures, "known_functions", lambda packages: FUNCTIONS)


ADDRESSES = [
    "generated://arithmetic?n=40",
    "generated://arithmetic?n=40&digits=4&ops=add,sub",
    "generated://arithmetic?n=40&digits=3&ops=sub&cot=0",
    "generated://parity?n=40&bits=10&cot=0.3",
    "generated://sort?n=40",
    "generated://reverse?n=40&length=4",
    "generated://signatures?n=40",
    "generated://signatures?n=40&kind=count",
]


@pytest.mark.parametrize("url", ADDRESSES)
def test_the_same_address_gives_the_same_data_and_another_seed_other_data(url):
    for form in (generated.chat_examples, generated.tasks, generated.choices, generated.preferences):
        assert form(url) == form(url)
        assert form(url) != form(url + "&seed=9")
        assert len(form(url)) == 40


@pytest.mark.parametrize("url", ADDRESSES)
def test_no_held_out_problem_is_in_any_training_set(url):
    questions = {e["messages"][0]["content"] for s in range(6) for e in generated.tasks(f"{url}&seed={s}")}
    held = {e["messages"][0]["content"] for s in range(6) for e in generated.tasks(f"{url}&split=heldout&seed={s}")}
    assert questions and held
    assert not questions & held
    keys = {p.key for s in range(6) for p in generated.problems(f"{url}&seed={s}")}
    assert not keys & {p.key for s in range(6) for p in generated.problems(f"{url}&split=heldout&seed={s}")}


def test_a_sum_and_its_mirror_image_are_on_one_side_of_the_split():
    sides = {}
    for split in ("train", "heldout"):
        for problem in generated.problems(f"generated://arithmetic?n=800&split={split}"):
            a, b = sorted(map(int, re.findall(r"\d+", problem.question)))
            sides.setdefault((a, b), set()).add(split)
    assert all(len(side) == 1 for side in sides.values())


@pytest.mark.parametrize("url", ADDRESSES)
def test_the_worked_answer_earns_the_whole_reward_and_wrong_ones_none(url):
    for example, task in zip(generated.chat_examples(url), generated.tasks(url), strict=True):
        assert verify(task, example["messages"][-1]["content"]) == 1
        assert task["messages"] == example["messages"][:-1]
    for task, pair in zip(generated.tasks(url), generated.preferences(url), strict=True):
        assert verify(task, pair["chosen"]) == 1
        assert verify(task, pair["rejected"]) == 0


@pytest.mark.parametrize("url", ADDRESSES)
def test_choices_are_different_and_the_right_one_is_anywhere(url):
    items = generated.choices(url)
    for item in items:
        assert len(set(item["choices"])) == len(item["choices"]) >= 2
        assert item["choices"][item["answer"]]
    assert len({item["answer"] for item in items}) == len(items[0]["choices"])


@pytest.mark.parametrize("url", ADDRESSES)
def test_the_right_choice_is_the_right_answer(url):
    for task, item in zip(generated.tasks(url), generated.choices(url), strict=True):
        rewards = [verify(task, choice) for choice in item["choices"]]
        assert rewards == [float(i == item["answer"]) for i in range(len(rewards))]


def test_more_problems_begin_with_the_fewer():
    few, many = (generated.tasks(f"generated://arithmetic?digits=3&n={n}") for n in (20, 50))
    assert many[:20] == few


def test_a_small_family_gives_what_it_has():
    found = generated.problems("generated://arithmetic?digits=1&n=5000")
    assert 50 < len(found) <= 100
    assert len({p.question for p in found}) == len(found)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_written_out_columns_add_up(a, b):
    a, b = max(a, b), min(a, b)
    for steps, value in ((addition(a, b), a + b), (subtraction(a, b), a - b)):
        for step in steps:
            left, right = step.split("=")
            assert sum(int(t) for t in re.findall(r"[-+]?\d+", left)) == int(right)
        last = [s.split("=")[1] for s in steps]
        digits = last[-1] + "".join(s[-1] for s in reversed(last[:-1]))
        assert int(digits) == value


@pytest.mark.parametrize("cot", [0, 0.3, 1])
def test_sums_show_their_steps_as_often_as_asked(cot):
    found = generated.chat_examples(f"generated://arithmetic?n=1000&digits=2&cot={cot}")
    shown = sum(e["messages"][-1]["content"].count("=") > 0 for e in found) / len(found)
    assert abs(shown - cot) < 0.06 and (cot == 0.3 or shown == cot)


def test_parity_shows_the_chain_as_often_as_asked():
    lengths = [
        len(e["messages"][-1]["content"]) > 20
        for e in generated.chat_examples("generated://parity?bits=16&n=1000&cot=0.1")
    ]
    assert 60 < sum(lengths) < 150
    (chain,) = generated.chat_examples("generated://parity?bits=8&n=1")
    number = re.search("[01]{8}", chain["messages"][0]["content"])[0]
    running = chain["messages"][1]["content"].split(".")[0]
    assert running == "".join(str(number[: i + 1].count("1") % 2) for i in range(8))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("generated://arithmetics", "Did you mean generated://arithmetic"),
        ("generated://arithmetic/x", "no such generator"),
        ("generated://arithmetic?digit=2", "Did you mean 'digits'"),
        ("generated://arithmetic?digits=two", "digits must be a int"),
        ("generated://arithmetic?digits=0", "digits must be from 1 to 12"),
        ("generated://arithmetic?ops=mul", "add and sub, not mul"),
        ("generated://arithmetic?cot=maybe", "cot must be a float"),
        ("generated://arithmetic?split=test", "train or heldout"),
        ("generated://arithmetic?n=0", "must be 1 or more"),
        ("generated://arithmetic?n=1000000000000", "1,000,000 at most"),
        ("generated://parity?cot=2", "cot must be from 0 to 1"),
        ("generated://signatures?kind=meaning", "kind must be one of"),
    ],
)
def test_a_wrong_address_says_what_is_known(url, message):
    with pytest.raises(ValueError, match=message):
        generated.problems(url)


def test_digest_follows_what_the_address_gives(monkeypatch):
    from cluster.data.readers import installed

    one = "generated://arithmetic?n=5"
    assert generated.digest(one) == generated.digest("generated://arithmetic?n=5&seed=0&digits=2")
    assert generated.digest(one) != generated.digest(one + "&seed=1")
    monkeypatch.setattr(installed, "digest", lambda url: "before")
    before = generated.digest("generated://signatures")
    monkeypatch.setattr(installed, "digest", lambda url: "after")
    assert generated.digest("generated://signatures") != before


def test_questions_are_on_real_functions_without_importing_them():
    usable = signatures.usable
    function = usable(
        "shutil", "Copier.copy", "(self, src: str, dst=None, *, follow: bool=True) -> str", "Copy a file  and its bits."
    )
    assert function is not None
    assert function.head == "copy(src, dst=None, *, follow=True)"
    assert function.parameters == ["src", "dst", "follow"]
    assert function.summary == "Copy a file and its bits."
    assert usable("m", "f", "(...)", "Copy a file and its bits.") is None
    assert usable("m", "f", "(a)", "Short.") is None
    assert usable("m", "f", "(a)", "f(a, b) -> something that is long enough") is None
    assert usable("m", "f", f"({', '.join('a' * i for i in range(1, 30))})", "Copy a file and its bits.") is None
    counted = signatures.problem("count", function, random.Random(0), list(FUNCTIONS))
    assert counted.worked == "src, dst, follow. The answer is 3."


def test_functions_are_read_from_an_installed_package_and_remembered(monkeypatch):
    monkeypatch.undo()
    signatures.known_functions.cache_clear()
    found = signatures.known_functions(("safetensors",))
    assert any(f.name == "safetensors.numpy.load" for f in found)
    signatures.known_functions.cache_clear()
    monkeypatch.setattr(signatures, "documented", lambda packages: pytest.fail("not from the cache"))
    assert signatures.known_functions(("safetensors",)) == found
    signatures.known_functions.cache_clear()


def test_functions_are_the_public_ones_with_a_docstring():
    found = {f"{f.module}.{f.qualname}": f for f in signatures.documented(["stdlib"])}
    info = found["json.loads"]
    assert info.signature.startswith("(s, *, cls=None")
    assert info.docstring_first_line.startswith("Deserialize ``s``")
    assert "string.Template.substitute" not in found  # it has no docstring
    assert "json.decoder.JSONDecoder.decode" in found
    assert len(found) > 1500
    assert not [name for name in found if "._" in name]
