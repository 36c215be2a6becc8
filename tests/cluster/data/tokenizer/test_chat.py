import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.data.tokenizer.chat import parse, render, render_prompt
from cluster.data.tokenizer.training import TokenizerConfig, train
from tests.cluster.data.given import some_documents

TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "What is <|end|>?\n"},
    {"role": "assistant", "content": " A token."},
    {"role": "user", "content": "ok"},
    {"role": "assistant", "content": ""},
]


@pytest.fixture(scope="module")
def tokenizer():
    return train([text for _, text in some_documents()], TokenizerConfig(vocab_size=400))


def example(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_loss_is_on_the_assistants_tokens_and_their_end_only(tokenizer):
    ids, mask = render(tokenizer, TURNS)
    learned = [i for i, m in zip(ids, mask, strict=True) if m]
    assert learned == [*tokenizer.encode(" A token."), tokenizer.end_id, tokenizer.end_id]
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.decode(ids, keep_special=True).startswith("<s><|system|>Be kind.<|end|><|user|>What is ")


def test_the_prompt_is_the_beginning_of_the_whole_conversation(tokenizer):
    ids, mask = render(tokenizer, TURNS[:3])
    prompt = render_prompt(tokenizer, TURNS[:2])
    assert prompt[-1] == tokenizer.special["<|assistant|>"]
    assert ids[: len(prompt)] == prompt
    assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))


text = st.text(alphabet="ab <|>enduser\n\u2581é0", max_size=20)


@given(system=st.none() | text, turns=st.lists(st.tuples(text, text), min_size=1, max_size=3))
def test_parse_gives_back_what_was_rendered(tokenizer, system, turns):
    messages = [{"role": "system", "content": system}] if system is not None else []
    for user, assistant in turns:
        messages += example(user, assistant)["messages"]
    assert parse(tokenizer, render(tokenizer, messages).ids) == messages


def test_parse_gives_a_message_that_was_cut_off_and_refuses_loose_text(tokenizer):
    ids = render(tokenizer, TURNS[1:3]).ids[:-1]
    assert parse(tokenizer, [*ids, tokenizer.eos_id, tokenizer.pad_id]) == TURNS[1:3]
    with pytest.raises(ValueError, match="outside a message"):
        parse(tokenizer, tokenizer.encode("hello"))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        ("hello", "at least one message"),
        (None, "at least one message"),
        ([{"role": "user"}], "Message 0 must be"),
        ([{"role": "user", "content": 3}], "Message 0 must be"),
        ([{"role": "robot", "content": ""}], "Message 0 has the role 'robot'"),
        ([TURNS[1], TURNS[1]], "Message 1 has the role 'user'; here comes assistant"),
        ([TURNS[1], TURNS[0]], "Message 1"),
        ([TURNS[2]], "system or user"),
    ],
)
def test_messages_that_do_not_follow_the_template_are_refused_by_place(tokenizer, messages, message):
    with pytest.raises(ValueError, match=message):
        render(tokenizer, messages)


def test_a_prompt_must_end_with_the_user(tokenizer):
    with pytest.raises(ValueError, match="end with the user"):
        render_prompt(tokenizer, TURNS)
