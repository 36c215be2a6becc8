"""Imported models chat by their own template, token by token as `apply_chat_template` has it."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from their_templates import GENERATION, TEMPLATES
from their_tokenizers import SPECIAL, USER_DEFINED, byte_level, pieces, sentencepiece_model, token, write
from transformers import AutoTokenizer

from cluster.data.tokenizer.chat import render, render_answer, render_prompt
from cluster.data.tokenizer.exchange import export_tokenizer, import_tokenizer
from cluster.data.tokenizer.template import ChatTemplate
from cluster.data.tokenizer.tokenizer import Tokenizer
from cluster.errors import UserError

USER, ASSISTANT = "user", "assistant"
CHAT = [
    {"role": "system", "content": " Be brief. "},
    {"role": USER, "content": "\nWhat is\n\n2 + 3? "},
    {"role": ASSISTANT, "content": "\n 5, é🙂\n"},
    {"role": USER, "content": "And <b>?"},
    {"role": ASSISTANT, "content": "fox"},
    {"role": USER, "content": "  "},
]


def folder_with(folder: Path, name: str, form: str) -> Path:
    """A tokenizer of a form with a family's template and its special tokens."""
    template, special, _, _ = TEMPLATES[name]
    if form == "bytes":
        byte_level(folder)
        size = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"][-1]["id"] + 1
        about = {"eos_token": "</s>", "bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"}
        more = [t for t in ("<s>", "</s>", *special) if t != SPECIAL]
        tokens = {str(size + i): token(t, True) for i, t in enumerate(more)}
    else:
        tokens = {str(600 + i): token(t, True) for i, t in enumerate(special)}
        pieces(folder, "LlamaTokenizer" if form == "pieces" else "GemmaTokenizer")
        about = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        about |= {"pad_token": "</s>", "mask_token": "<unk>"}
    write(folder, "tokenizer_config.json", about | {"added_tokens_decoder": tokens})
    write(folder, "config.json", {"model_type": "llama"})
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=[(n, f) for n in TEMPLATES for f in ("bytes", "pieces", "Gemma")], ids=" ".join)
def both(request, tmp_path_factory):
    """(ours, theirs, the token that ends a turn, messages)"""
    name, form = request.param
    folder = folder_with(tmp_path_factory.mktemp("theirs"), name, form)
    (folder / "ours").mkdir()
    import_tokenizer(folder, folder / "ours", 10_000)
    _, _, end, system = TEMPLATES[name]
    return Tokenizer(folder / "ours"), AutoTokenizer.from_pretrained(folder), end, CHAT if system else CHAT[1:]


def theirs_of(tokenizer, messages, prompt=False):
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False))


def test_every_conversation_has_the_same_ids(both):
    ours, theirs, _, messages = both
    asked = [m for m in range(len(messages)) if messages[m]["role"] == USER]
    for last in asked:
        assert render_prompt(ours, messages[: last + 1]) == theirs_of(theirs, messages[: last + 1], True)
        assert render(ours, messages[: last + 1]).ids == theirs_of(theirs, messages[: last + 1])
    assert render(ours, messages[:-1]).ids == theirs_of(theirs, messages[:-1])


text = st.text(alphabet="ab .\n\t é🙂\u2581|<{}%", max_size=12)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(turns=st.lists(st.tuples(text, text), min_size=1, max_size=3))
def test_whatever_is_said_has_the_same_ids_and_the_answers_are_learned(both, turns):
    ours, theirs, end, _ = both
    messages = [m for a, b in turns for m in ({"role": USER, "content": a}, {"role": ASSISTANT, "content": b})]
    ids, mask = render(ours, messages)
    assert ids == theirs_of(theirs, messages)
    assert len(mask) == len(ids)
    last = theirs.convert_tokens_to_ids(end)
    assert sum(m for i, m in zip(ids, mask, strict=True) if i == last) == len(turns)
    spoken = [i for i, m in zip(ids, mask, strict=True) if m]
    said = ours.decode(spoken, keep_special=True, continues=True).replace(end, "")
    assert _letters(said).replace("<think></think>", "") == _letters("".join(b for _, b in turns))


def _letters(text):
    return "".join(text.replace("\u2581", " ").split())


def test_what_is_learned_is_what_the_prompt_asks_for_and_the_token_that_ends_it(both):
    ours, theirs, end, _ = both
    messages = CHAT[1:]  # Mistral's moves a system message to the last turn
    ids, mask = render(ours, messages[:-1])
    prompt = render_prompt(ours, messages[:-2])
    begin = len(prompt) - 1  # the last token of a prompt may be one with the answer's first
    assert ids[:begin] == prompt[:begin]
    assert mask[begin] + mask[begin + 1] >= 1
    assert [i for i, m in zip(ids, mask, strict=True) if m][-1] == theirs.convert_tokens_to_ids(end)
    assert ours.end_id == theirs.convert_tokens_to_ids(end)
    assert ours.end_id in ours.stop_ids


def test_the_template_goes_out_and_comes_back(both, tmp_path):
    ours, _, _, messages = both
    ours.save(tmp_path)
    kept = Tokenizer(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "again").mkdir()
    export_tokenizer(kept, tmp_path / "out", 64)
    write(tmp_path / "out", "config.json", {"model_type": "llama"})
    import_tokenizer(tmp_path / "out", tmp_path / "again", 10_000)
    assert render(Tokenizer(tmp_path / "again"), messages) == render(ours, messages)


def test_a_special_token_s_name_in_a_message_is_words(both):
    ours, theirs, end, _ = both
    last = theirs.convert_tokens_to_ids(end)
    plain = [{"role": USER, "content": "a b"}, {"role": ASSISTANT, "content": "fox"}]
    named = [{"role": USER, "content": f"a{end}b {end}{end}"}, {"role": ASSISTANT, "content": f"fox {end} and"}]
    for form in (render, render_prompt):
        counts = []
        for messages in (plain, named):
            ids = render_prompt(ours, messages[:1]) if form is render_prompt else render(ours, messages).ids
            counts.append(ids.count(last))
        assert counts[0] == counts[1]
    ids, mask = render(ours, named)
    assert f"a{end}b {end}{end}" in ours.decode(ids, keep_special=True)
    learned = [i for i, m in zip(ids, mask, strict=True) if m]
    assert learned.count(last) == 1 and learned[-1] == last
    assert f"fox {end} and" in ours.decode(learned, keep_special=True, continues=True)


def test_what_stands_beside_a_name_in_a_message_is_not_one_token_with_what_is_not_there(tmp_path):
    folder = folder_with(tmp_path, "ChatML", "pieces")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(**USER_DEFINED))  # two newlines are one piece
    (folder / "ours").mkdir()
    import_tokenizer(folder, folder / "ours", 10_000)
    ours = Tokenizer(folder / "ours")
    said = f"fox {SPECIAL}\nis it"
    ids = render_prompt(ours, [{"role": USER, "content": said}])
    assert f"user\n{said}<|im_end|>" in ours.decode(ids, keep_special=True)


def test_an_answer_s_mask_is_on_the_last_answer_and_its_end_alone(both):
    ours, theirs, end, _ = both
    before = [{"role": USER, "content": "a"}, {"role": ASSISTANT, "content": "wrong"}, {"role": USER, "content": "b"}]
    for answer in ("fox", "\n 5, é🙂", f"a {end}"):
        ids, mask = render_answer(ours, before, answer)
        whole = render(ours, [*before, {"role": ASSISTANT, "content": answer}])
        learned = [i for i, m in zip(ids, mask, strict=True) if m]
        said = ours.decode(learned, keep_special=True, continues=True).replace("<think>", "").replace("</think>", "")
        assert ids == whole.ids
        assert learned[-1] == theirs.convert_tokens_to_ids(end)
        assert _letters(said).removesuffix(end) == _letters(answer)


def test_of_a_template_that_writes_earlier_turns_otherwise_the_answers_are_learned_from_where_their_prompts_end():
    source = (
        "{% for m in messages %}[{{ 'earlier' if m.role == 'user' and not loop.last else m.role }}]"
        "{{ '*' if m.role == 'assistant' else '' }}{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    messages = [
        {"role": r, "content": c} for r, c in ((USER, "a"), (ASSISTANT, "one"), (USER, "b"), (ASSISTANT, "two"))
    ]
    (text, _), spans = ChatTemplate(source, {}, ["</s>"]).marked(messages)
    assert text == "[earlier]a</s>[assistant]*one</s>[earlier]b</s>[assistant]*two</s>"
    assert [text[begin:end] for begin, end in spans] == ["*one</s>", "*two</s>"]


def test_a_template_s_refusal_is_said(tmp_path):
    (tmp_path / "ours").mkdir()
    import_tokenizer(folder_with(tmp_path, "Gemma", "Gemma"), tmp_path / "ours", 10_000)
    with pytest.raises(UserError, match="refuses this: System role not supported"):
        render_prompt(Tokenizer(tmp_path / "ours"), CHAT[:2])


def test_a_template_may_be_in_the_config_by_name(tmp_path):
    folder = folder_with(tmp_path, "ChatML", "bytes")
    (folder / "chat_template.jinja").unlink()
    about = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tmp_path / "ours").mkdir()
    for told in (GENERATION, [{"name": "tool_use", "template": "x"}, {"name": "default", "template": GENERATION}]):
        write(folder, "tokenizer_config.json", about | {"chat_template": told})
        import_tokenizer(folder, tmp_path / "ours", 10_000)
        theirs = AutoTokenizer.from_pretrained(folder)
        assert render_prompt(Tokenizer(tmp_path / "ours"), CHAT[:2]) == theirs_of(theirs, CHAT[:2], True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "broken, in line 1"),
        ("{% for x in %}", "broken"),
        ("{{ messages[9].content }}", "refuses this|fails"),
        ("{{ messages + 3 }}", r"fails \(TypeError"),
        ("{{ ''.__class__.__mro__ }}", "refuses this"),
        ("{{ messages.append(1) }}", "refuses this"),
        ("{% set n = namespace(__class__=1) %}", "refuses this"),
        ("{{ raise_exception.__globals__['x'] }}", "refuses this"),
        ("{% for i in range(10000000) %}a{% endfor %}", r"fails|refuses"),
        ("{% include 'x' %}", "refuses this|fails"),
    ],
)
def test_a_broken_or_hostile_template_is_refused(source, message):
    with pytest.raises(UserError, match=message):
        ChatTemplate(source, {}, []).render(CHAT)
