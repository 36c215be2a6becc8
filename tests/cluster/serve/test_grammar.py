"""Output that is constrained: whatever a model of random weights would write, what it writes is of the grammar."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_model import make_model

from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.errors import UserError
from cluster.interop.huggingface import import_folder
from cluster.serve import grammar
from cluster.serve.generator import Generator
from model.generate.decoding import Decoding
from tests.cluster.their_chat_model import make_chat_model

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
REGEX = r"[A-Z][a-z]{2,5} (0|[1-9][0-9]{0,2})(\.[0-9]{2})?"
GRAMMAR = 'start: sum\nsum: "1" | "(" sum "+" sum ")"'
DRAWN = Decoding(max_new_tokens=200, temperature=1.0)


def of_schema(text: str) -> bool:
    value = json.loads(text)
    return (
        value.keys() == {"name", "age", "tags"}
        and isinstance(value["name"], str) and len(value["name"]) <= 6
        and type(value["age"]) is int and 0 <= value["age"] <= 150
        and len(value["tags"]) <= 3 and set(value["tags"]) <= {"a", "b"}
    )  # fmt: skip


def of_grammar(text: str) -> bool:
    """Sums in brackets, taken together from the inside."""
    while "(1+1)" in text:
        text = text.replace("(1+1)", "1")
    return text == "1"


CASES: dict[str, tuple[str, Any]] = {
    "json_schema": (json.dumps(SCHEMA), of_schema),
    "regex": (REGEX, lambda text: bool(re.fullmatch(REGEX, text))),
    "grammar": (GRAMMAR, of_grammar),
}


@pytest.fixture(scope="module", params=["ours", "byte-level"])
def generator(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """Of our tokenizer, and of an imported one; that model has more rows than its tokenizer has ids."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "ours":
        return Generator(make_model(folder, max_seq_len=256), "cpu")
    make_chat_model(folder / "theirs")
    import_folder(folder / "theirs", folder / "ours")
    return Generator(folder / "ours", "cpu")


@pytest.mark.parametrize("name", CASES)
def test_every_output_is_of_what_it_must_be(generator: Generator, name: str) -> None:
    """200 seeds; a text that the length cut off, which is only a beginning, is told by its finish."""
    pytest.importorskip("llguidance")
    given, right = CASES[name]
    answers = generator.answers(["x"] * 200, replace(DRAWN, **{name: given}))
    whole = [answer.text for answer in answers if answer.completion.finish == "stop"]
    many, different = (60, 3) if name == "grammar" else (150, 50)  # half of the sums would never end
    assert len(whole) > many and len(set(whole)) > different, "the case must have many texts"
    assert [text for text in whole if not right(text)] == []


def test_beams_and_votes_and_stops_are_constrained_too(generator: Generator) -> None:
    pytest.importorskip("llguidance")
    for kind in ("beam:n=3", "self_consistency:n=3", "dola"):
        answer = generator.answers(["x"], replace(DRAWN, kind=kind, regex=REGEX))[0]
        assert all(re.fullmatch(REGEX, text) for text in (answer.text, *answer.others))
    streamed = "".join(generator.stream("x", replace(DRAWN, regex="[ab]{8}c", stops=("a",), seed=3)))
    assert re.fullmatch("b*", streamed)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"json_schema": '{"type": "objekt"}'}, "json_schema can't be followed: "),
        ({"regex": "(a"}, "regex can't be followed: "),
        ({"grammar": "start: nothing"}, "grammar can't be followed: "),
    ],
)
def test_what_is_no_grammar_is_refused_in_its_own_words(tmp_path: Path, options: dict[str, str], said: str) -> None:
    pytest.importorskip("llguidance")
    with pytest.raises(UserError) as error:
        grammar.matcher(Tokenizer(make_model(tmp_path)), Decoding(**options))
    assert str(error.value).startswith(said)


def test_without_the_library_it_is_said_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(grammar, "import_module", missing)
    with pytest.raises(UserError, match=r"regex needs the package llguidance.*pip install 'tokenmill\[constrained\]'"):
        Generator(make_model(tmp_path), "cpu").complete("x", Decoding(regex="a"))


def test_a_diffusion_model_follows_no_grammar(tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    with pytest.raises(UserError, match="regex: a diffusion model doesn't write from left to right"):
        Generator(make_model(tmp_path, causal=False), "cpu").complete("x", Decoding(regex="a"))
